"Streams, buckets and one-call loaders: every token, every document, the order they come in, and what fastai shows of them"
import io,json,lzma,tracemalloc
from contextlib import redirect_stdout
import numpy as np,pandas as pd,pytest,torch
from fastai.callback.progress import *
from fastai.data.block import CategoryBlock,DataBlock,MultiCategoryBlock,RegressionBlock
from fastai.data.transforms import ColReader,ColSplitter
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from hypothesis import given,settings,strategies as st
from ulmfit_t5.core import bundled
from ulmfit_t5.data.corpus import tokenize_corpus
from ulmfit_t5.data.datasets import load_dataset
from ulmfit_t5.data.loaders import BucketLoader,LMLoader,MemoryCorpus,TextBlock,TextDataLoaders,TextDataset
from ulmfit_t5.data.tokenizer import PAD_ID,load_tokenizer,train_subword

@pytest.fixture(scope='module')
def dbpedia(): return load_dataset('dbpedia', 'test').sample(600, random_state=0).reset_index(drop=True)

@pytest.fixture(scope='module')
def tok(dbpedia): return train_subword(dbpedia.text, vocab_sz=1000, n_threads=1)

@pytest.fixture(scope='module')
def kw(tok): return dict(tok=tok, bs=16, device='cpu', progress=False)

def unique_docs(n, rng, most=40):
    "Documents in which every token of the corpus is another number"
    lens = rng.integers(1, most, n)
    return MemoryCorpus(np.split(np.arange(10, 10+lens.sum()), lens.cumsum()[:-1]))

def rows(dl):
    xs,ys = zip(*dl)
    return torch.cat(xs, 1),torch.cat(ys, 1)

class Bag(torch.nn.Module):
    def __init__(self, n, c, lm=False):
        super().__init__()
        self.emb,self.out,self.lm = torch.nn.Embedding(n, 16, padding_idx=PAD_ID),torch.nn.Linear(16, c),lm
    def forward(self, x): return self.out(self.emb(x) if self.lm else self.emb(x).mean(1))

def quiet(f, *args, **kwargs):
    with redirect_stdout(io.StringIO()) as s: f(*args, **kwargs)
    return s.getvalue()

flags = dict(shuffle=st.booleans(), backwards=st.booleans(), random_bptt=st.booleans(), seed=st.integers(0, 99))

@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), bs=st.integers(1, 12), seq_len=st.integers(2, 30), **flags)
def test_streams_carry_state_and_show_every_token_once(n, bs, seq_len, shuffle, backwards, random_bptt, seed):
    c = unique_docs(n, np.random.default_rng(seed))
    if c.n_tokens<2: return
    dl = LMLoader(c, bs=bs, seq_len=seq_len, shuffle=shuffle, backwards=backwards, random_bptt=random_bptt, seed=seed)
    n_batches = len(dl)
    batches = list(dl)
    assert len(batches)==n_batches and all(x.is_contiguous() and y.is_contiguous() and x.dtype==torch.long for x,y in batches)
    for (x,y),(x2,_) in zip(batches, batches[1:]): assert torch.equal(y[:,-1], x2[:,0])
    x,y = (torch.cat(o, 1) for o in zip(*batches))
    assert torch.equal(y[:,:-1], x[:,1:])
    seen = x.flatten().tolist()
    assert len(set(seen))==len(seen) and 0<=c.n_tokens-1-len(seen)<dl.bs
    stream,starts = seen+y[-1,-1:].tolist(),c.ids[c.offsets[:-1]]
    for a,b in zip(stream, stream[1:]):
        same = np.searchsorted(starts, a, 'right')==np.searchsorted(starts, b, 'right')
        assert not same or b==a+(-1 if backwards else 1)
    if not shuffle and not backwards: assert stream==c.ids[:len(stream)].tolist()

def test_order_of_shuffled_documents_changes_by_epoch_and_seed_reproduces():
    c = unique_docs(50, np.random.default_rng(0))
    make = lambda seed: LMLoader(c, bs=4, seq_len=9, shuffle=True, random_bptt=True, seed=seed)
    a,b,other = make(1),make(1),make(2)
    a0,a1 = rows(a)[0],rows(a)[0]
    assert torch.equal(a0, rows(b)[0]) and torch.equal(a1, rows(b)[0])
    assert not torch.equal(a0, a1) and not torch.equal(a0, rows(other)[0])

def test_backward_stream_is_the_forward_stream_of_reversed_documents():
    c = unique_docs(30, np.random.default_rng(3))
    back = LMLoader(c, bs=3, seq_len=7, shuffle=True, backwards=True, seed=4)
    fwd = LMLoader(MemoryCorpus([d[::-1] for d in c]), bs=3, seq_len=7, shuffle=True, seed=4)
    for (x,y),(x2,y2) in zip(back, fwd): assert torch.equal(x, x2) and torch.equal(y, y2)

def test_part_of_a_corpus_and_its_first_tokens():
    c = unique_docs(30, np.random.default_rng(3))
    dl = LMLoader(TextDataset(c, docs=[3,7,9], max_len=4), bs=1, seq_len=5)
    x,y = rows(dl)
    assert x[0].tolist()+y[0,-1:].tolist()==[t for i in (3,7,9) for t in c[i][:4]]

@pytest.mark.parametrize('stop', [1,5,'all'])
@pytest.mark.parametrize('make', [lambda s: LMLoader(unique_docs(60, np.random.default_rng(0)), bs=3, seq_len=8, shuffle=True, random_bptt=True, seed=s),
    lambda s: BucketLoader(TextDataset(unique_docs(60, np.random.default_rng(0))), bs=5, shuffle=True, seed=s)])
def test_position_is_resumed(make, stop):
    "Another loader, with the state of the first as JSON, gives the rest of the second epoch and then the same third"
    one,two = make(1),make(2)
    list(one)
    it,n = iter(one),len(one)
    for _ in range(n if stop=='all' else stop): next(it)
    state = json.loads(json.dumps(one.state_dict()))
    rest = [b[0].tolist() for b in it]
    two.load_state_dict(state)
    if stop=='all': assert rest==[]
    else: assert len(two)==n==stop+len(rest) and [b[0].tolist() for b in two]==rest
    assert [b[0].tolist() for b in two]==[b[0].tolist() for b in one]!=rest

def test_one_batch_does_not_move():
    dl = LMLoader(unique_docs(60, np.random.default_rng(0)), bs=3, seq_len=8, shuffle=True, seed=0)
    a = dl.one_batch()[0]
    assert torch.equal(a, dl.one_batch()[0]) and torch.equal(a, next(iter(dl))[0])

def test_random_windows_and_their_rate():
    dl = LMLoader(MemoryCorpus([np.arange(200_000)]), bs=4, seq_len=70, random_bptt=True, seed=0)
    seen = [(x.shape[1],dl.lr_mult) for x,_ in dl]
    assert all(m==n/70 for n,m in seen) and min(n for n,_ in seen)>=5
    assert .02<np.mean([n<52 for n,_ in seen])<.09 and 60<np.median([n for n,_ in seen])<75

def test_few_tokens():
    assert LMLoader(MemoryCorpus([[2,3]]), bs=64).bs==1
    dl = LMLoader(MemoryCorpus([np.arange(100)]), bs=64)
    assert dl.bs==19 and dl.note=='100 tokens are too few for 64 streams: 19 are used' and len(list(dl))==1
    with pytest.raises(ValueError, match='1 token in 1 document can not be a stream'): LMLoader(MemoryCorpus([[2]]))
    with pytest.raises(TypeError, match='LMLoader needs a Corpus'): LMLoader([1,2])

def test_memory_is_flat_while_streaming(tmp_path, tok):
    texts = ['a text of some words ' * 20]*4000
    c = tokenize_corpus(iter(texts), tok, cache=tmp_path, key='flat', progress=False, n_workers=1)
    dl = LMLoader(c, bs=32, seq_len=50, shuffle=True, seed=0)
    it = iter(dl)
    next(it)
    tracemalloc.start()
    n = sum(x.numel() for x,_ in it)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n>c.n_tokens*.9 and n>400_000 and peak<1_000_000

@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 200), bs=st.integers(2, 20), cap=st.sampled_from([None,100,500]), shuffle=st.booleans(), seed=st.integers(0, 99))
def test_every_document_once_with_its_target(n, bs, cap, shuffle, seed):
    c = unique_docs(n, np.random.default_rng(seed))
    dl = BucketLoader(TextDataset(c, y=torch.arange(n)), bs=bs, shuffle=shuffle, max_tokens=cap, seed=seed)
    assert len(dl)==len(list(dl))
    ys,longest = [],[]
    for x,y in dl:
        for ids,i in zip(x, y): assert ids[:c.lens[i]].tolist()==c[int(i)].tolist() and (ids[c.lens[i]:]==PAD_ID).all()
        assert not shuffle or len(y)>1 or n==1
        if cap and len(x)>3: assert x.numel()<=cap+x.shape[1]
        ys += y.tolist()
        longest.append(x.shape[1])
    assert sorted(ys)==list(range(n))
    if not shuffle: assert longest==sorted(longest, reverse=True)

def test_longest_first_once_and_padding():
    c = unique_docs(3000, np.random.default_rng(0), most=400)
    dl = BucketLoader(TextDataset(c), bs=16, shuffle=True, seed=0)
    first = [next(iter(dl))[0].shape[1] for _ in range(4)]
    assert first[0]==c.lens.max() and set(first[1:])!={first[0]}
    plain = 1-c.n_tokens/sum(c.lens[i:i+16].max()*len(c.lens[i:i+16]) for i in range(0, 3000, 16))
    assert dl.padding()<.05<.4<plain
    cells = [((x!=PAD_ID).sum().item(),x.numel()) for x, in dl]
    assert abs(1-sum(a for a,_ in cells)/sum(b for _,b in cells)-dl.padding())<.02

def test_dbpedia_frame_to_learner(dbpedia, kw, tok):
    dls = TextDataLoaders.from_df(dbpedia, **kw)
    assert (dls.c,len(dls.vocab[0]),len(dls.vocab[1])) == (14,len(tok),14) and len(dls.train_ds)+len(dls.valid_ds)==600
    assert dls.report.n_valid==120 and 'labels' in str(dls.report) and 'padding' in dls.report._repr_html_()
    x,y = dls.one_batch()
    assert type(x) is torch.Tensor and x[0,0]==tok.bos_id and len(y)==16
    shown = dls.train.show_batch(show=False)[2]
    assert len(shown)==9 and shown[0][1] in dls.labels and isinstance(shown[0][0], str)
    assert quiet(dls.show_batch, max_n=2)
    learn = Learner(dls, Bag(len(tok), 14), metrics=accuracy)
    with learn.no_bar(),learn.no_logging(): learn.fit(5, 2e-2)
    assert learn.recorder.values[-1][-1]>.3 and isinstance(learn.loss_func, CrossEntropyLossFlat)
    assert quiet(learn.show_results)
    with learn.no_bar():
        assert learn.predict(dbpedia.text[0])[0] in dls.labels
        p,t = learn.get_preds(dl=dls.test_dl(dbpedia, with_labels=True))
        q,_ = learn.get_preds(dl=dls.test_dl(dbpedia.text.tolist()))
    assert t.tolist()==[dls.labels.index(o) for o in dbpedia.label] and torch.equal(p, q)

def test_dbpedia_language_model(dbpedia, kw, tok):
    for back in (False,True):
        lm = TextDataLoaders.from_df(dbpedia, is_lm=True, backwards=back, seq_len=20, **kw)
        assert lm.vocab==tok.vocab and lm.report.n_valid==60 and 'label' not in lm.read
        a,b = lm.train.show_batch(show=False)[2][0]
        assert len(b.split())>4 and ' '.join(b.split()[1:-1]) in a
        learn = Learner(lm, Bag(len(tok), len(tok), lm=True), loss_func=CrossEntropyLossFlat())
        with learn.no_bar(),learn.no_logging(): learn.fit(1, 1e-2)
        assert learn.recorder.values[-1][1]<np.log(len(tok)) and quiet(learn.show_results, max_n=2)

@pytest.mark.parametrize('back', [False,True])
def test_language_model_batches_are_shown_as_a_table(dbpedia, kw, tok, back, monkeypatch, capsys):
    from ulmfit_t5.data import batches
    tables = []
    monkeypatch.setattr(batches, 'display_df', tables.append)
    lm = TextDataLoaders.from_df(dbpedia, is_lm=True, backwards=back, seq_len=20, **kw)
    lm.show_batch(max_n=3)
    LMLoader(lm.corpus, tok, bs=4, backwards=back).show_batch(max_n=2)
    DataBlock(TextBlock(tok, is_lm=True, backwards=back), get_x=ColReader('text')).dataloaders(dbpedia, bs=4).show_batch(max_n=2, trunc_at=5)
    assert [(o.shape,o.columns.tolist()) for o in tables]==[((3,2),['text','text_'])]+[((2,2),['text','text_'])]*2
    for o in tables[0].itertuples():
        a,b = (o.text_,o.text) if back else (o.text,o.text_)
        assert len(b.split())>4 and ' '.join(b.split()[1:-1]) in a and 'xxbos' not in a
    assert tables[2].text.str.split().str.len().max()<=6 and not capsys.readouterr().out

def test_every_source_gives_the_same_texts(dbpedia, kw, tmp_path):
    df = dbpedia[:60].assign(text=dbpedia.text[:60].str.strip(), part=['train']*50+['valid']*10)
    df.to_csv(tmp_path/'a.csv', index=False)
    df.to_csv(tmp_path/'a.tsv.gz', index=False, sep='\t')
    with lzma.open(tmp_path/'a.jsonl.xz', 'wt', encoding='utf8') as f: f.writelines(json.dumps(o)+'\n' for o in df.to_dict('records'))
    for i,r in df.iterrows():
        p = tmp_path/'tree'/r.part/r.label/f'{i:03}.txt'
        p.parent.mkdir(parents=True, exist_ok=True)
        p.write_text(r.text, encoding='utf8')
    F = TextDataLoaders
    parts = dict(train=df[:50],valid=df[50:])
    made = [F.from_df(df, valid_col='part', **kw), F.from_csv(tmp_path/'a.csv', valid='part', **kw), F.from_csv(str(tmp_path/'a.tsv.gz'), valid='part', **kw),
        F.from_jsonl(tmp_path/'a.jsonl.xz', valid='part', **kw), F.from_folder(tmp_path/'tree', **kw), F.from_source(parts, **kw),
        F.from_list(df.text[:50], df.label[:50], valid=df[50:], **kw)]
    want = sorted(zip(df.text[:50], df.label[:50]))
    for d in made:
        got = sorted((d.tok.decode(x.tolist()),d.labels[int(y)]) for x,y in (d.train_ds[i] for i in range(50)))
        assert got==sorted((d.tok.decode(d.tok.encode(t)),y) for t,y in want) and len(d.valid_ds)==10

def test_hugging_face_objects(dbpedia, kw):
    hf = pytest.importorskip('datasets')
    names = sorted(set(dbpedia.label))
    feats = hf.Features(text=hf.Value('string'), label=hf.ClassLabel(names=names))
    make = lambda d: hf.Dataset.from_dict(dict(text=d.text.tolist(), label=[names.index(o) for o in d.label]), features=feats)
    dls = TextDataLoaders.from_hf(hf.DatasetDict(train=make(dbpedia[:400]), validation=make(dbpedia[400:500]), test=make(dbpedia[500:])), **kw)
    assert (len(dls.train_ds),len(dls.valid_ds)) == (400,100) and dls.labels==names and 'test (100 rows)' in str(dls.report)
    assert len(TextDataLoaders.from_hf(make(dbpedia), valid_pct=.5, **kw).valid_ds)==300

def test_several_labels_numbers_and_columns(kw, tok):
    df = pd.DataFrame(dict(title=['one','two']*20, text=['a cat','a dog']*20, tags=['x;y','y']*20, score=[.5,2]*20, x=[1,0]*20, y=[0,1]*20))
    multi = TextDataLoaders.from_df(df, label_cols='tags', label_delim=';', **kw)
    assert multi.labels==['x','y'] and set(map(tuple, multi.one_batch()[1].tolist()))=={(1.,1.),(0.,1.)}
    assert {tuple(o[1]) for o in multi.train.show_batch(show=False)[2]}=={('x','y'),('y',)}
    hot = TextDataLoaders.from_df(df, label_cols=['x','y'], **kw)
    assert set(map(tuple, hot.one_batch()[1].tolist()))=={(1.,0.),(0.,1.)}
    num = TextDataLoaders.from_df(df, label_cols='score', regression=True, y_range=(0,3), text_cols=['title','text'], **kw)
    assert num.c==1 and num.y_range==(0,3) and set(num.one_batch()[1].tolist())=={.5,2.}
    assert num.one_batch()[0][0].tolist().count(tok.vocab.index('xxfld'))==2
    for d in (multi,hot,num):
        learn = Learner(d, Bag(len(tok), d.c))
        with learn.no_bar(),learn.no_logging(): learn.fit(1, 1e-2)
        assert quiet(learn.show_results) and quiet(d.show_batch)
    assert len(num.test_dl(df)) and len(num.test_dl(['a cat']))

@pytest.mark.parametrize('y,col,want', [(CategoryBlock,'label',torch.long),(MultiCategoryBlock,'tags',torch.float),(RegressionBlock,'score',torch.float)])
def test_data_block(dbpedia, kw, tok, y, col, want):
    df = dbpedia[:80].assign(tags=[['a','b'][:1+i%2] for i in range(80)], score=np.arange(80.), v=[False]*60+[True]*20)
    db = DataBlock((TextBlock(tok),y), get_x=ColReader('text'), get_y=ColReader(col), splitter=ColSplitter('v'))
    dls = db.dataloaders(df, bs=8, device='cpu')
    assert dls.train.fast and len(dls.valid)==3 and all(b[1].dtype==want for b in dls.train)
    x,_ = next(iter(dls.valid))
    assert x[0].tolist()==max((tok.encode(t) for t in df.text[60:]), key=len)
    assert quiet(dls.show_batch, max_n=2) and len(dls.test_dl(['a new text','another'])) == 1
    learn = Learner(dls, Bag(len(tok), dls.c if y is not RegressionBlock else 1))
    with learn.no_bar(),learn.no_logging(): learn.fit(1, 1e-2)
    with learn.no_bar(): assert len(learn.get_preds()[0])==20

def test_data_block_with_its_own_transforms_goes_item_by_item(dbpedia, tok):
    from fasttransform.transform import Transform
    from fastai.text.data import TensorText
    class Cut(Transform):
        def encodes(self, o:TensorText): return o[:5]
    db = DataBlock((TextBlock(tok),CategoryBlock(sorted(set(dbpedia.label)))), get_x=ColReader('text'), get_y=ColReader('label'), item_tfms=Cut())
    dls = db.dataloaders(dbpedia[:40], bs=8, device='cpu')
    assert not dls.train.fast and all(x.shape==(8,5) for x,_ in dls.train) and quiet(dls.show_batch, max_n=2)

def test_texts_are_tokenised_once(dbpedia, tok, tmp_path):
    kw = dict(tok=tok, cache=tmp_path, device='cpu', progress=False)
    a = TextDataLoaders.from_df(dbpedia, **kw)
    stamps = {p:p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
    b = TextDataLoaders.from_df(dbpedia, seed=1, **kw)
    assert a.corpus.path==b.corpus.path and stamps=={p:p.stat().st_mtime_ns for p in tmp_path.rglob('*')}
    dls = DataBlock(TextBlock(tok, is_lm=True, cache=tmp_path), get_x=ColReader('text')).dataloaders(dbpedia, bs=4)
    assert dls.train.ds.corpus.path==a.corpus.path

def test_seeds_reproduce(dbpedia, kw):
    f = lambda seed: [b[0].tolist() for b in TextDataLoaders.from_df(dbpedia, seed=seed, **kw).train]
    assert f(1)==f(1)!=f(2)

def test_named_dataset_and_bundled_tokenizer(kw, tmp_path):
    dls = TextDataLoaders.from_name('dbpedia', **kw)
    assert dls.c==14 and len(dls.train_ds)==8960 and 'test (2,800 rows)' in str(dls.report)
    assert len(TextDataLoaders.from_name('dbpedia', valid='test', **kw).valid_ds)==2800
    with pytest.raises(ValueError, match='no dataset is called'): TextDataLoaders.from_name('dbpedla', **kw)

def test_default_tokenizer_is_the_bundled_one(dbpedia):
    tok = TextDataLoaders.from_df(dbpedia, device='cpu').tok
    assert tok.vocab==load_tokenizer(bundled('awd-lstm-fwd')).vocab and len(tok)>5000

def test_trec(data_home, kw):
    dls = TextDataLoaders.from_name('trec', valid='test', **kw)
    assert (len(dls.train_ds),len(dls.valid_ds),dls.c) == (5452,500,6) and dls.train.padding()<.1
    lm = TextDataLoaders.from_name('trec', is_lm=True, seq_len=30, **kw)
    x,y = lm.one_batch()
    assert x.shape==(16,30) and torch.equal(x[:,1:], y[:,:-1])
