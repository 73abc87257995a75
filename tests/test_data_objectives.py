"Noise, objectives and packing: nothing is lost, lengths and densities are as computed, the same seed gives the same bits, tiny texts never fail"
import itertools,tracemalloc,warnings
import numpy as np,pytest,torch
from hypothesis import given,settings,strategies as st
from ulmfit_t5.data.batches import MemoryCorpus
from ulmfit_t5.data.noise import (IidMask,PrefixMask,Ragged,RegularMask,SpanMask,choose,compute_input_and_target_lengths,run_starts,span_counts)
from ulmfit_t5.data.objectives import OBJECTIVES,UL2,Mixture,Objective,SpecialIds,objective,rejoin_spans
from ulmfit_t5.data.packing import DenoisingLoader,PackedDenoisingLoader,PairLoader,collate_packed,cut_documents,fill_rows,segment_mask
from ulmfit_t5.show import show_corruption

sp = SpecialIds(32_100, 5000, eos_id=1, pad_id=0, first=3)
NAMES = [*OBJECTIVES,*UL2,'reg_2_30_u_u','span_1.5_40_s_s','iid_50_u_u','iid_90_s_s','iid_15_r_f','iid_15_g_f','iid_15_p_f','span_3_15_d_d','span_10_50_m_f']
WITH_SENTINELS = [o for o in NAMES if o.endswith(('_u_u','_s_s'))]
lengths = st.lists(st.integers(0, 90), max_size=8)
opts = settings(max_examples=60, deadline=None)

def texts(lens, seed=0):
    "Texts in which no token comes twice"
    return Ragged(np.random.default_rng(seed).permutation(26_000)[:sum(lens)]+3, lens)
def same(a, b): return all(np.array_equal(x.ids, y.ids) and np.array_equal(x.lens, y.lens) for x,y in zip(a, b))
def split(mask, lens): return list(Ragged(mask, lens))

@opts
@given(lens=lengths, name=st.sampled_from(WITH_SENTINELS), seed=st.integers(0, 999))
def test_the_text_is_recovered(lens, name, seed):
    x = texts(lens, seed)
    for a,b,t in zip(*objective(name)(x, sp, seed), x): assert rejoin_spans(a, b, sp).tolist()==t.tolist()

@opts
@given(lens=lengths, name=st.sampled_from(NAMES), seed=st.integers(0, 999))
def test_any_lengths_are_closed_and_lose_nothing(lens, name, seed):
    x = texts(lens, seed)
    a,b = objective(name)(x, sp, seed)
    assert len(a)==len(b)==len(x) and all(o[-1]==1 for s in (a,b) for o in s)
    full = name in OBJECTIVES and (OBJECTIVES[name] or '').endswith('_f') or name.endswith('_f')
    for i,o,t in zip(a, b, x):
        if full: assert o[:-1].tolist()==t.tolist()
        else: assert sorted(v for v in [*i[:-1],*o[:-1]] if sp.number[v]<0)==sorted(t.tolist())

@opts
@given(lens=lengths, name=st.sampled_from(NAMES), seed=st.integers(0, 999))
def test_the_seed_decides(lens, name, seed):
    x,o = texts(lens),objective(name)
    assert same(o(x, sp, seed), o(list(x), sp, np.random.default_rng(seed)))

def test_another_seed_is_another_mask():
    x = texts([2000])
    for name in set(NAMES)-{'lm','prefix_25'}: assert any(not same(objective(name)(x, sp, 0), objective(name)(x, sp, s)) for s in (1,2,3)), name

@opts
@given(lens=lengths, seed=st.integers(0, 999), density=st.floats(.01, .99), mean=st.floats(1, 12), codes=st.tuples(*map(st.sampled_from, ('mrgpdsu','fdsu'))))
def test_lengths_are_known_ahead(lens, seed, density, mean, codes):
    o = Objective(SpanMask(density, mean), *codes)
    a,b = o(texts(lens), sp, seed)
    assert [a.lens.tolist(),b.lens.tolist()]==[n.tolist() for n in o.lengths(lens, sp)]
    p = Objective(PrefixMask(density), 'd', 'd')
    assert [s.lens.tolist() for s in p(texts(lens), sp, seed)]==[n.tolist() for n in p.lengths(lens)]

def test_lengths_left_to_chance_are_not_promised():
    for name in ('iid_15_u_u','reg_3_15_d_d','prefix_lm'): assert objective(name).lengths([9]) is None
    assert Objective(SpanMask(roll=True)).lengths([9]) is None

@opts
@given(n=st.integers(0, 700), density=st.floats(.01, .99), mean=st.floats(1, 12), seed=st.integers(0, 999))
def test_masks_of_spans(n, density, mean, seed):
    lens = np.array([n,1,n])
    mask = SpanMask(density, mean)(lens, np.random.default_rng(seed))
    noise,spans = span_counts(lens, density, mean)
    for m,a,b in zip(split(mask, lens), noise, spans):
        if len(m)<2: assert not m.any()
        else: assert m.sum()==a and run_starts(m, np.array([len(m)])).sum()==b and not m[0] and m[-1]

@pytest.mark.parametrize('density,mean', [(.15,3),(.15,10),(.5,3),(.25,2),(.1,1)])
def test_density_and_mean_span_are_met(density, mean):
    lens = np.full(300, 512)
    for mask in (SpanMask(density, mean),SpanMask(density, mean, True),RegularMask(density, mean),IidMask(density)):
        m = mask(lens, np.random.default_rng(0))
        assert abs(m.mean()/density-1)<.03, mask
        if not isinstance(mask, IidMask): assert abs(m.sum()/run_starts(m, lens).sum()/mean-1)<.08, mask

def test_spans_fall_everywhere():
    "Each place but the first and the last is noise about equally often"
    m = SpanMask(roll=True)(np.full(20_000, 40), np.random.default_rng(0)).reshape(-1, 40).mean(0)
    assert abs(m/.15-1).max()<.08
    lens = np.full(30_000, 7) # 3 noise tokens in 2 spans: 2 cuts of the noise, 3 of the rest, each as likely
    _,n = np.unique(SpanMask(.45, 1.5)(lens, np.random.default_rng(1)).reshape(-1, 7), axis=0, return_counts=True)
    assert len(n)==6 and abs(n/5000-1).max()<.06

@opts
@given(n=st.lists(st.integers(0, 70), max_size=12), data=st.data())
def test_choose_takes_exactly_k(n, data):
    k = [data.draw(st.integers(0, o)) for o in n]
    got = choose(np.array(n, dtype=int), np.array(k, dtype=int), np.random.default_rng(0))
    assert [o.sum() for o in Ragged(got, n)]==k

@opts
@given(n=st.integers(8, 1500), density=st.floats(.05, .45), mean=st.floats(1, 20))
def test_raw_length_is_the_largest_that_fits(n, density, mean):
    o = Objective(SpanMask(density, mean))
    raw,target = compute_input_and_target_lengths(n, density, mean)
    assert o.lengths(raw)[0]<=n<o.lengths(raw+1)[0] and o.lengths(raw)[1]==target and o.raw_length(n)==raw

def test_half_noise_follows_the_reference():
    "At density .5 a target would be longer than the input; both lengths are one less"
    a,b = Objective(SpanMask(.5, 3)).lengths([n := compute_input_and_target_lengths(512, .5, 3)[0]])
    assert max(a,b)<=512 and compute_input_and_target_lengths(512, .5, 3)[1]<=512 and n>700

# %% sentinels

few = SpecialIds(1000, 10, eos_id=1, pad_id=0, first=3)
def short(ids): return Ragged(ids.ids%900+3, ids.lens)

@pytest.mark.parametrize('name', ['span_1_15_u_u','iid_30_u_u','reg_1_20_u_u'])
def test_sentinels_never_run_out_silently(name):
    x = short(texts([4000,5,2000]))
    with pytest.warns(UserWarning, match='sentinels are enough for 10'): a,b = objective(name)(x, few, 0)
    for i,o,t in zip(a, b, x):
        assert rejoin_spans(i, o, few).tolist()==t.tolist()
        for s in (i,o): assert len(set(s[few.number[s]>=0]))==(few.number[s]>=0).sum()<=10

def test_too_many_spans_in_a_given_mask_are_refused():
    mask = np.arange(100)%2==1
    with pytest.raises(ValueError, match='50 spans, but 10 sentinels: give more sentinels'): objective('span_3_15_u_u').apply(texts([100]), mask, few)
    assert len(objective('span_3_15_s_s').apply(texts([100]), mask, few)[0].ids)==101 # a common sentinel never runs out

def test_rolled_spans_keep_within_the_sentinels():
    with pytest.warns(UserWarning):
        for s in range(20): Objective(SpanMask(.3, 1, roll=True))(short(texts([300])), few, s)

def test_no_warning_where_there_are_enough():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        for name in NAMES: objective(name)(texts([568,1,0]), sp, 0)

def test_random_tokens_are_ordinary():
    x = texts([5000])
    a,_ = objective('iid_50_r_f')(x, sp, 0)
    new = a.ids[:-1][a.ids[:-1]!=x.ids]
    assert len(new)>2000 and new.min()>=3 and (sp.number[new]<0).all()
    a,_ = objective('iid_50_r10s90_f')(x, sp, 0)
    changed = a.ids[:-1][a.ids[:-1]!=x.ids]
    assert abs((changed==sp.sentinels[0]).mean()-.9)<.03 and abs(len(changed)/5000-.5)<.03

def test_16_bit_ids_can_hold_no_sentinel_of_their_own():
    big = SpecialIds(65_636, 100, eos_id=1, pad_id=0, first=3)
    a,_ = objective('span_3_15_u_u')(np.full((2,100), 65_000, dtype=np.uint16), big, 0)
    assert a.ids.max()==65_635

def test_a_tokenizer_with_sentinels_keeps_them():
    class Tok:
        vocab,eos_id,pad_id = ['<pad>','</s>','<unk>',*'abcdefgh','<extra_id_1>','<extra_id_0>'],1,0
        def __len__(self): return len(self.vocab)
    s = SpecialIds.of(Tok())
    assert s.sentinels.tolist()==[12,11] and s.vocab_sz==13 and s.names([12,3], Tok.vocab)==['<extra_id_0>','a']

# %% names

@pytest.mark.parametrize('name,near', [('span_coruption','span_corruption'),('span_3_15_u_q','span_3_15_u_u'),('prefixlm','prefix_lm'),('UL2','ul2'),('','span_3_15_u_u'),('span_3_1.5.2_u_u','span_3_15_u_u'),('iid_15','iid_15_u_u')])
def test_unknown_names_get_the_nearest(name, near):
    with pytest.raises(ValueError, match=near): objective(name)

@pytest.mark.parametrize('name', ['span_3_100_u_u','iid_0_u_u','span_0.5_15_u_u','iid_150_u_u','reg_0_15_u_u','prefix_0','prefix_1.0'])
def test_densities_and_means_are_checked(name):
    with pytest.raises(ValueError, match='for example span_3_15_u_u'): objective(name)

def test_every_name_of_the_grammar():
    for rule,d,i,o in itertools.product(('iid','span_3','span_2.5','reg_4'), ('15','0.15','50'), [*'mrgpdsu','r10s90'], 'fdsu'):
        obj = objective(f'{rule}_{d}_{i}_{o}')
        assert obj.mask.density in (.15,.5) and obj.codes==(i,o)
        obj(texts([0,1,30]), sp, 0)

def test_mixtures():
    m = Mixture(['lm','drop_tokens'], [0,1])
    assert same(m(texts([50,3]), sp, 0), m(texts([50,3]), sp, 0)) and 'drop_tokens' in repr(m)
    assert m(texts([50]), sp, 0)[0].lens[0]>1 # never lm
    assert [len(o) for o in Mixture(['lm'])([], sp, 0)]==[0,0]
    with pytest.raises(ValueError, match='one of each'): Mixture(['lm','drop_tokens'], [1])

@opts
@given(lens=lengths, seed=st.integers(0, 99))
def test_a_mixture_keeps_the_order_of_texts(lens, seed):
    x = texts(lens)
    a,b = Mixture(['span_3_15_u_u','iid_50_u_u','prefix_lm'], prefixes=[[3],[4,5],[]])(x, sp, seed)
    for i,o,t in zip(a, b, x): assert set(t)<={*i,*o,3,4,5}

# %% packing

sizes = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 6)), max_size=60)

@opts
@given(sizes=sizes, window=st.integers(1, 40))
def test_every_example_is_in_one_row_that_holds_it(sizes, window):
    rows = list(fill_rows(iter(sizes), 20, 6, window))
    assert sorted(i for r in rows for i in r)==list(range(len(sizes)))
    for r in rows: assert sum(sizes[i][0] for i in r)<=20 and sum(sizes[i][1] for i in r)<=6

@opts
@given(sizes=sizes, window=st.integers(1, 40))
def test_rows_hold_whole_examples_apart(sizes, window):
    rows = list(fill_rows(sizes, 20, 6, window))
    if not rows: return
    x,y = (texts([s[i] for s in sizes], i) for i in (0,1))
    b = collate_packed(x, y, rows, 20, 6, pad_id=0)
    for ids,seg,pos,src in ((b.inputs,b.input_segments,b.input_positions,x),(b.targets,b.target_segments,b.target_positions,y)):
        assert (ids==0).equal(seg==0)
        for r,row in enumerate(rows):
            for k,i in enumerate(row):
                own = seg[r]==k+1
                assert ids[r][own].tolist()==src[i].tolist() and pos[r][own].tolist()==list(range(len(src[i])))
                assert own.long().diff().clip(min=0).sum()+own[0]==(len(src[i])>0) # in one piece
    seen = segment_mask(b.target_segments, b.input_segments)
    assert seen.sum().item()==sum(sizes[i][0]*sizes[i][1] for r in rows for i in r)

def test_streams_are_packed_in_bounded_memory():
    "A long stream is read as rows are asked for, and what is held does not grow with it"
    read = 0
    def stream(n):
        nonlocal read
        for i in range(n):
            read += 1
            yield 5+i*7919%400,3
    it = fill_rows(stream(10**9), 512, 64, 128)
    next(it)
    assert read==128
    tracemalloc.start()
    for _ in range(50): next(it)
    first = tracemalloc.get_traced_memory()[1]
    for _ in range(1000): next(it)
    assert tracemalloc.get_traced_memory()[1]<first+50_000
    tracemalloc.stop()

def test_no_example_waits_for_ever():
    "Large examples go on, though small ones always fit better"
    rows = list(fill_rows([(11,1)]+[(10,1)]*4000, 20, 9, 16))
    assert 0 in rows[0] and max(max(r)-min(r) for r in rows)<=16

@pytest.mark.parametrize('pack', [True,False])
def test_pairs_come_once_each_epoch(pack):
    rng = np.random.default_rng(0)
    xs,ys = ([np.r_[i+10,np.full(n, 5)] for i,n in enumerate(rng.integers(0, m, 200))] for m in (60,8))
    dl = PairLoader(xs, ys, 64, 16, bs=7, pack=pack, shuffle=True, seed=1)
    orders = []
    for _ in range(2):
        firsts = torch.cat([b[0][b[0]>=10] for b in dl])
        assert sorted(firsts.tolist())==list(range(10, 210))
        orders.append(firsts.tolist())
    assert orders[0]!=orders[1] and orders[0]==torch.cat([b[0][b[0]>=10] for b in PairLoader(xs, ys, 64, 16, bs=7, pack=pack, shuffle=True, seed=1)]).tolist()
    x,y = (np.mean([(b[i]==1).float().mean().item() for b in dl]) for i in (0,1))
    assert abs(dl.padding()[0]-x)<.05 and abs(dl.padding()[1]-y)<.05

def test_pairs_must_match():
    with pytest.raises(ValueError, match='2 inputs and 1 target:'): PairLoader([[1],[2]], [[1]])

# %% pretraining

@pytest.fixture(scope='module')
def corpus():
    rng = np.random.default_rng(0)
    return MemoryCorpus([rng.integers(3, 900, n) for n in np.minimum(rng.lognormal(4, 1, 400).astype(int), 3000)])

@pytest.mark.parametrize('length', [64,128,512])
@pytest.mark.parametrize('name', ['span_3_15_u_u','span_2_25_u_u','span_10_50_u_u'])
def test_pretraining_rows_are_full(corpus, name, length):
    s = SpecialIds(1200, 200, eos_id=1, pad_id=0, first=3)
    dl = DenoisingLoader(corpus, name, s, inputs_length=length, bs=4, seed=0)
    assert all(o<.01 for o in dl.padding(10**6)) and len(dl)==-(-(corpus.n_tokens//dl.raw)//4)
    x,y = dl.one_batch()
    want = compute_input_and_target_lengths(length, dl.objective.mask.density, dl.objective.mask.mean)
    assert abs(x.shape[1]-length)<=1 and y.shape[1]==want[1] and dl.raw==want[0]

@pytest.mark.parametrize('name', ['span_3_15_u_u','bert','deshuffling','prefix_lm','lm','ul2'])
def test_pretraining_with_any_objective_can_stop_and_go_on(corpus, name):
    s = SpecialIds(1200, 200, eos_id=1, pad_id=0, first=3)
    make = lambda: DenoisingLoader(corpus, name, s, inputs_length=96, bs=8, seed=5)
    whole,other = list(make()),make()
    it = iter(other)
    for _ in range(3): next(it)
    again = make()
    again.load_state_dict(other.state_dict())
    for (x,y),(u,v) in zip(whole[3:], again, strict=True): assert x.equal(u) and y.equal(v) and max(x.shape[1], y.shape[1])<=96

def test_a_tiny_corpus_is_enough():
    s = SpecialIds(1200, 100, eos_id=1, pad_id=0, first=3)
    for name in ('span_3_15_u_u','bert','prefix_lm','ul2'): assert len(list(DenoisingLoader(MemoryCorpus([[5,6]]), name, s)))==1
    with pytest.raises(ValueError, match='give sp'): DenoisingLoader(MemoryCorpus([[5,6]]))

@opts
@given(lens=st.lists(st.integers(0, 200), max_size=12), length=st.integers(12, 90), least=st.integers(1, 8))
def test_pieces_cover_each_document_and_fit(lens, length, least):
    table = list(range(1, length))
    p = cut_documents(lens, table, [1]*len(table), length, 3, least)
    for d,n in enumerate(lens): assert [i for _,k,at,m in p if k==d for i in range(at, at+m)]==list(range(n))
    for r in np.unique(p[:,0]): assert sum(m+1 for m in p[p[:,0]==r,3])<=length and (p[:,0]==r).sum()<=3

@pytest.mark.parametrize('name', ['span_3_15_u_u','span_10_50_u_u','prefix_25','lm'])
def test_documents_stay_apart(name):
    rng = np.random.default_rng(0)
    docs = [np.full(n, i+3) for i,n in enumerate(np.minimum(rng.lognormal(4, 1, 300).astype(int), 3000))] # a document is one token, again and again
    s = SpecialIds(1200, 200, eos_id=1, pad_id=0, first=3)
    dl,seen = PackedDenoisingLoader(MemoryCorpus(docs), name, s, inputs_length=256, bs=4, seed=0),np.zeros(400, dtype=int)
    first = list(dl)
    for b in first:
        assert b.inputs.shape[1]==256 and (b.inputs==0).equal(b.input_segments==0) and (b.targets==0).equal(b.target_segments==0)
        for ids,other,seg,oseg in zip(b.inputs.numpy(), b.targets.numpy(), b.input_segments.numpy(), b.target_segments.numpy()):
            for k in range(1, seg.max()+1):
                both = np.concatenate([ids[seg==k],other[oseg==k]])
                text = both[(both!=1) & (s.number[both]<0)]
                assert len(set(text))==1
                seen[text[0]-3] += len(text)
    assert seen[:300].tolist()==list(map(len, docs))
    again = PackedDenoisingLoader(MemoryCorpus(docs), name, s, inputs_length=256, bs=4, seed=0)
    again.load_state_dict(dict(seed=0, epoch=0, pos=2))
    assert all(x.equal(y) for b,c in zip(first[2:], again, strict=True) for x,y in zip(b, c))
    empty = sum((o==0).sum() for b in first for o in b[:2])/sum(o.numel() for b in first for o in b[:2])
    if name.startswith('span'): assert empty<.01+1/sum(len(b.inputs) for b in first) # 1 %, and the last row, which nothing follows

def test_rows_that_can_not_be_planned_are_refused(corpus):
    s = SpecialIds(1200, 200, eos_id=1, pad_id=0, first=3)
    with pytest.raises(ValueError, match='left to chance'): PackedDenoisingLoader(corpus, 'iid_15_u_u', s)
    assert list(PackedDenoisingLoader(MemoryCorpus([]), 'span_3_15_u_u', s))==[]

# %% the picture

@pytest.mark.parametrize('name', NAMES)
def test_the_picture_is_what_training_sees(name):
    from ulmfit_t5.data.tokenizer import bundled_tokenizer
    tok,text = bundled_tokenizer(),'The river carries more water than the next seven largest rivers together, & rises <b>far</b> away.'
    v = show_corruption(text, name, tok, seed=3)
    s,p = SpecialIds.of(tok),v.panels[0]
    a,b = objective(name)([tok.encode(text)[1:]], s, 3)
    assert [len(p.inputs),len(p.targets)]==[len(a.ids),len(b.ids)]
    for toks,ids in ((p.inputs,a.ids),(p.targets,b.ids)):
        for t,i in zip(toks, ids):
            if t.kind=='sentinel': assert t.text.strip()==f'<extra_id_{s.number[i]}>'
            elif t.kind!='end': assert t.text.strip()==tok.vocab[i].replace('▁', '').strip()
    h = v._repr_html_()
    assert h.count('<div')==h.count('</div>') and h.count('<span')==h.count('</span>') and '<b>far' not in h and '<script' not in h and 'http' not in h
    assert str(v).count('\n')==3
