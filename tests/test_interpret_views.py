"States, attention, embeddings, errors and calibration: arrays equal to what the models compute, pictures that are small, safe and reachable"
import json,re
import numpy as np,pandas as pd,pytest,torch
from hypothesis import given,settings,strategies as st
from ulmfit_t5.core import seed_everything
from ulmfit_t5.data.objectives import SpecialIds
from ulmfit_t5.data.tokenizer import bundled_tokenizer
from ulmfit_t5.inference import TextPredictor
from ulmfit_t5.interpret.attention import *
from ulmfit_t5.interpret.calibration import *
from ulmfit_t5.interpret.embeddings import *
from ulmfit_t5.interpret.errors import *
from ulmfit_t5.interpret.states import *
from ulmfit_t5.models.awd_lstm import AWDLSTM
from ulmfit_t5.models.heads import TextClassifier
from ulmfit_t5.models.t5 import T5
from ulmfit_t5.text2text import Text2TextLearner
from ulmfit_t5.writer import TextWriter,vocab_config

tok = bundled_tokenizer()
TEXT = 'The blue heron is a wading bird found along rivers, lakes and marshes of North America.'

def classifier(**kwargs):
    seed_everything(0)
    return TextClassifier(AWDLSTM(len(tok), 12, 16, 3, **kwargs), 3, bptt=5, max_len=600)

def t5(arch='encoder_decoder', **kwargs):
    seed_everything(3)
    return T5(vocab_config(tok, d_model=32, d_ff=64, n_layers=2, n_heads=2, d_kv=16, arch=arch, **kwargs)).eval()

@pytest.mark.parametrize('cell', ['lstm','qrnn'])
def test_states_are_those_of_the_model(cell):
    "Gates make the cells and the hidden states that the encoder gives, in chunks or not"
    m = classifier(cell=cell).train()
    s = States(m, tok, TEXT)
    assert m.training
    ids = torch.tensor([tok.encode(TEXT)])
    want = m.eval().states(ids).h[0].detach().numpy()
    np.testing.assert_allclose(s.layers[-1].h, want, atol=1e-5)
    for l in s.layers:
        past = np.concatenate([np.zeros_like(l.c[:1]), l.c[:-1]])
        np.testing.assert_allclose(l.c, l.f*past+l.i*l.g, atol=1e-5)
        np.testing.assert_allclose(l.h, l.o*(np.tanh(l.c) if cell=='lstm' else l.c), atol=1e-5)
    back = States(m, tok, TEXT, backwards=True)
    assert back.pieces==s.pieces[::-1] and not np.allclose(back.layers[0].h[::-1], s.layers[0].h)
    with pytest.raises(TypeError, match='AWDLSTM'): States(torch.nn.Linear(2, 2), tok, TEXT)

@pytest.mark.parametrize('arch', ['encoder_decoder','shared','encoder'])
def test_attention_is_that_of_the_model(arch):
    "Full rows sum to one; values weighted by them are what the layer gave; hooks are gone"
    m,x,y = t5(arch),torch.tensor(tok.encode(TEXT)),torch.tensor(tok.encode('A bird')[1:]+[tok.eos_id])
    a = attention_of(m, x, None if arch=='encoder' else y, None)
    assert set(a)==({'encoder'} if arch=='encoder' else {'encoder','decoder','cross'})
    for v in a.values(): np.testing.assert_allclose(v.val.sum(-1), 1, atol=1e-5)
    layer,inp = m.encoder.blocks[0].attn,[]
    h = layer.register_forward_hook(lambda m, i, o: inp.append((i[0],o)))
    with torch.no_grad(): m.encode(x[None])
    h.remove()
    (q,out), = inp
    w = torch.as_tensor(a['encoder'].dense()[0])[None]
    with torch.no_grad(): own = layer.o((w@layer.heads(layer.v(q))).transpose(1, 2).flatten(2))
    torch.testing.assert_close(own, out, atol=1e-4, rtol=1e-4)
    assert not any(b._forward_hooks for b in m.modules())
    if arch!='encoder': assert np.triu(a['decoder'].dense(), 1).max()<1e-6

@pytest.mark.parametrize('arch', ['decoder_lm','prefix_lm'])
def test_attention_of_one_row(arch):
    "Input and answer in one stack: the input sees all of itself where it is a prefix, the answer only what is before"
    x,y = torch.tensor(tok.encode(TEXT)),torch.tensor(tok.encode('A bird')[1:]+[tok.eos_id])
    a,n = attention_of(t5(arch), x, y, None),len(x)
    w,seen = a['row'].dense(),np.tril(np.ones((n+len(y),)*2, bool))
    if arch=='prefix_lm': seen[:,:n] = True # the place that tells the first of the answer reads the last of the input
    assert list(a)==['row'] and w[..., ~seen].max()<1e-6
    if arch=='prefix_lm': assert w[:,:,0,1:n].min()>0
    np.testing.assert_allclose(w.sum(-1), 1, atol=1e-5)

def test_attention_needs_an_answer():
    with pytest.raises(ValueError, match='give the ids of an answer'): attention_of(t5(), torch.tensor([5,6]))

def test_attention_stays_light_at_512_tokens():
    "The compact shape: under a megabyte, and at least 20 times smaller than one JSON number for each weight"
    from ulmfit_t5.models.t5 import t5_config
    c = t5_config('compact')
    seed_everything(0)
    m = T5(vocab_config(tok, 'compact')).eval()
    x,y = torch.randint(300, len(tok), (512,)),torch.randint(300, len(tok), (48,))
    v = AttentionView(attention_of(m, x, y), tok.pieces(x), tok.pieces(y))
    n = len(v._repr_html_().encode())
    full = c.n_layers*c.n_heads*(512*512+48*48+48*512)*len('0.0123456,')
    assert n<1_000_000 and full>20*n
    assert 'http' not in v._repr_html_().replace('https://','http')

def test_attention_picture_holds_the_weights():
    v = attention_view(TextWriter(t5(), tok, max_len=4), TEXT, 'A bird', top=4)
    h = v._repr_html_()
    d = json.loads(re.search(r'class="u5-data">(.*?)</script>', h)[1])
    for k,a in v.sides.items():
        np.testing.assert_array_equal(unpack_topk(d[k]).idx, a.idx)
        np.testing.assert_allclose(unpack_topk(d[k]).val, a.val, atol=.5/255+1e-6)
    assert h.count('data-i=')>=len(v.read)+len(v.wrote) and v._still() in h
    evil = AttentionView({'encoder':v.sides['encoder']}, ['</script><b>']*len(v.read))._repr_html_()
    assert '</script><b>' not in evil

def test_bias_curves_are_the_bias():
    m = t5()
    for bias in (m.encoder.bias,m.decoder.bias):
        d,c = bias_curves(bias, 40)
        full = bias(41, 41)[0].detach().numpy() # (h q k)
        for x,col in zip(d, c.T):
            q,k = (0,x) if x>=0 else (-x,0)
            if x<=0 or bias.bidirectional: np.testing.assert_allclose(col, full[:,q,k], atol=1e-6)

def test_neighbours_by_hand():
    "Against a plain loop over the vocabulary"
    seed_everything(0)
    e = torch.randn(len(tok), 8)
    near = neighbours(e, tok, ['river'], 3)['river']
    i = tok.encode('river')[1]
    z = torch.nn.functional.normalize(e-e.mean(0), dim=1)
    best = [j for j in (z@z[i]).argsort(descending=True).tolist() if j!=i and j>8 and tok.vocab[j].startswith('▁') and len(tok.vocab[j])>2][:3]
    assert [w for w,_ in near]==[tok.vocab[j][1:] for j in best]
    with pytest.raises(ValueError, match='one vocabulary'): compare_neighbours(e, e[:,:4], tok, ['river'])
    assert compare_neighbours(e, e, tok, ['river']).moved.abs().max()<1e-6

def interpretation():
    pred = TextPredictor(classifier(), tok, ['animal','plant','place'])
    df = pd.DataFrame(dict(text=[TEXT,'A village <b>in</b> Nepal.','An orchid.','A river.'], label=['animal','place','plant','place']))
    return Interpretation.from_table(pred, df)

def test_top_losses_and_confusion_agree():
    it = interpretation()
    top = it.top_losses(4)
    assert (np.diff(top.loss)<=1e-9).all() and it.confusion().sum()==4
    for t,a in ((t,a) for t in it.labels for a in it.labels): assert len(it.confused(t, a))==it.confusion()[it.labels.index(t),it.labels.index(a)]
    assert it.most_confused(9).texts.sum()==it.wrong.sum()
    page = it.show_top_losses(2)
    assert '<script' not in page.html and '<b>in</b>' not in page.html
    assert '&lt;b&gt;' in it.show_top_losses(4).html # what the text has of markup is shown as text

def test_each_cell_opens_its_texts():
    "One radio button for each cell with texts, one rule and one list; keyboard reaches radio buttons by itself; no script"
    it = interpretation()
    h = it.show_confusion()._repr_html_()
    cells = list(zip(*it.confusion().nonzero()))
    assert h.count('type="radio"')==len(cells)==h.count('class="u5-list"') and h.count(' checked>')==1
    uid = re.search(r'<div id="(u5c\w+)"', h)[1]
    for i,j in cells: assert f'#{uid}-{i}-{j}:checked) #{uid}-l{i}-{j}' in h and f'for="{uid}-{i}-{j}"' in h
    assert '<script' not in h and '&lt;b&gt;in' in h and 'focus-visible' in h

@pytest.mark.parametrize('T', [.4,1.,2.5,6.])
@pytest.mark.parametrize('task', ['single','multi'])
def test_a_known_temperature_is_found(T, task):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(6000,4))*2
    if task=='single':
        p = np.exp(z)/np.exp(z).sum(1, keepdims=True)
        y = (p.cumsum(1)>rng.random((len(p),1))).argmax(1)
    else: y = (rng.random(z.shape)<1/(1+np.exp(-z))).astype(float)
    c = Calibration(T*z[:4000], y[:4000], task, held_out=(T*z[4000:],y[4000:]))
    assert c.T==pytest.approx(T, rel=.08)
    assert c.after.ece<.03 and c.nll[1]<=c.nll[0]+5e-3
    if T>2: assert c.before.ece>2*c.after.ece and 'too sure' in repr(c)

def test_a_temperature_at_its_limits():
    assert .01<=fit_temperature(3.*np.eye(3), [0,1,2])<.5 # all right: sharper is always better
    assert 5<fit_temperature(10.*np.eye(3), [1,2,0])<=100 # all wrong: flatter is always better
    with pytest.raises(ValueError, match='finite'): fit_temperature(np.array([[np.nan,1.]]), [0])

@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60), st.integers(1, 12), st.sampled_from(['count','width']))
def test_bins_hold_every_answer_once(rows, bins, equal):
    c,r = zip(*rows)
    o = reliability(c, r, bins, equal)
    assert o.n.sum()==len(rows) and 0<=o.ece<=1
    assert (o.n*o.conf).sum()==pytest.approx(sum(c)) and (o.n*o.right).sum()==pytest.approx(sum(r))

def test_a_baked_temperature_is_saved_with_the_model(tmp_path):
    from ulmfit_t5.artefacts import save_classifier
    it = interpretation()
    z = it.pred.logits(it.texts)
    c = it.pred.calibrate(it)
    torch.testing.assert_close(it.pred.logits(it.texts), z/c.T, atol=1e-4, rtol=1e-3)
    save_classifier(tmp_path/'m', it.pred.model, tok, it.labels)
    np.testing.assert_allclose(TextPredictor.load(tmp_path/'m').probs(it.texts), c.probs(z), atol=1e-4)

@pytest.mark.parametrize('side', ['cross','encoder','decoder'])
def test_attention_is_coloured_where_no_script_runs(side):
    "As on a printed page: the token that looks is framed, and what it looks at is blue, the strongest the strongest"
    v = attention_view(TextWriter(t5(), tok, max_len=4), TEXT, 'A bird', top=4, side=side, at=1)
    still = re.sub('<script.*?</script>', '', v._repr_html_(), flags=re.S)
    blocks = {k:re.findall(r'<span data-i="\d+" style="([^"]*)"', still.split(f'class="u5-{k}"')[1].split('</div>')[0]) for k in ('read','wrote')}
    keys,asks = blocks['wrote' if side=='decoder' else 'read'],blocks['read' if side=='encoder' else 'wrote']
    assert [i for i,s in enumerate(asks) if 'outline' in s]==[1]
    blue = [float(m[1]) if (m := re.search(r'rgba\(0,114,178,([\d.]+)\)', s)) else 0. for s in keys]
    w = v.sides[side].dense()[-1,:,1].mean(0)
    if side=='decoder': w = np.append(w[1:], 0.) # a place has read what was written before it, the first one only the start, which is not shown
    assert [b>0 for b in blue]==list(w>.004) and blue[int(w.argmax())]==max(blue) and max(blue)>(.12 if side=='decoder' else .5)
    if side!='decoder' and side!='encoder': assert 'rgba' not in ''.join(asks)

def test_neighbours_of_the_bundled_t5():
    "It has rows of sentinels behind those of the pieces: they are no one's neighbours, and change none"
    e = embedding_of('t5-compact')
    assert len(e)==len(tok)+100
    near = neighbours('t5-compact', tok, ['film','river'], 5)
    assert near==neighbours(e[:len(tok)], tok, ['film','river'], 5)
    whole = neighbours(e, tok, 'film', 50, whole=False)['film']
    assert len(whole)==50 and not any('extra_id' in w for w,_ in whole)
    d = compare_neighbours('t5-compact', e+.01, tok, ['film'])
    assert d.before[0].split(', ')[0].strip('[]')==neighbours(e, tok, 'film', 6)['film'][0][0] and '[' not in d.before[0]

def test_sentinels_that_moved_have_names():
    e = embedding_of('t5-compact')
    after = e.clone()
    after[SpecialIds.of(tok).sentinels[5]] *= 10
    after[tok.encode('film')[1]] *= 5
    assert most_moved(e, after, tok, 2).piece.tolist()==['<extra_id_5>','▁film']
    beyond = torch.cat([e,torch.ones(28, e.shape[1])]) # as T5's own files have them, rounded up
    assert most_moved(beyond, torch.cat([e,2*torch.ones(28, e.shape[1])]), tok, 1).piece[0]==f'<{len(e)}>'

def test_neighbours_are_asked_for_in_words():
    seed_everything(0)
    e = torch.randn(len(tok), 8)
    assert neighbours(e, tok, 'river', 3)==neighbours(e, tok, ['river'], 3)
    assert compare_neighbours(e, e, tok, 'river').word.tolist()==['river']
    for k in (0,-1,99_999):
        with pytest.raises(ValueError, match=f'k={k} neighbours are not there: give 1 to [0-9,]+, or whole=False'): neighbours(e, tok, ['river'], k)
    most = int(re.search('1 to ([0-9,]+)', str(pytest.raises(ValueError, neighbours, e, tok, 'river', 99_999).value))[1].replace(',', ''))
    assert len(neighbours(e, tok, 'river', most)['river'])==most and all(c>=-1.001 for _,c in neighbours(e, tok, 'river', most)['river'])
    with pytest.raises(ValueError, match='50 vectors for 10,000 pieces'): neighbours(e[:50], tok, 'river')

def test_attention_to_sentinels():
    "Read or written, they have their names, stand apart from the pieces around them, and are text in the page"
    v = attention_view(TextWriter(t5(), tok, max_len=4), 'Kind of Blue is a <extra_id_0> album', '<extra_id_0> studio <extra_id_1>')
    assert '<extra_id_0>' in v.read and v.wrote[0]=='<extra_id_0>' and '<extra_id_1>' in v.wrote
    h = v._repr_html_()
    body = re.sub('<script.*?</script>', '', h, flags=re.S).split('class="u5-read"')[1]
    assert '<extra_id' not in body and re.search('> <span[^>]*>&lt;extra_id_0&gt;</span> <span[^>]*>album', body)

def test_attention_of_what_the_bundled_t5_writes():
    "What it writes for an input far from its task has sentinels in it, as it learnt them in pretraining"
    w = TextWriter.load('t5-compact', say=None)
    w.predict = lambda text: '<extra_id_0> studio'
    assert attention_view(w, 'sst2 sentence: a film').wrote[0]=='<extra_id_0>'

@pytest.mark.parametrize('kw,say', [(dict(top=0),'top=0 weights of each row'), (dict(top=-1),'top=-1 weights'), (dict(at=1000),'at=1000 is not there: give a number from 0 to'),
    (dict(at=-1000),'at=-1000 is not'), (dict(side='row'),"side='row' is not there: choose one of encoder, decoder, cross"), (dict(target=''),"target='' is empty"), (dict(target=3),'target=3 is no text')])
def test_a_wrong_question_about_attention_is_told(kw, say):
    with pytest.raises((ValueError,TypeError), match=say): attention_view(TextWriter(t5(), tok, max_len=4), TEXT, **dict(target='A bird')|kw)

@pytest.mark.parametrize('kw,say', [(dict(at=9999),'at=9999 is not there'), (dict(layer=50),'layer=50 is not there: give a number from 0 to 1, or from -2 to -1'), (dict(head=50),'head=50'),
    (dict(side='row'),"side='row'"), (dict(at='x'),"at='x'")])
def test_a_place_that_is_not_there_is_told(kw, say):
    v = attention_view(TextWriter(t5(), tok, max_len=4), TEXT, 'A bird')
    with pytest.raises(ValueError, match=say): v.looks_at(**dict(at=0)|kw)
    if 'at' not in kw:
        with pytest.raises(ValueError, match=say): plot_attention(v, **kw)

@pytest.mark.parametrize('layer', [3,-4,50])
def test_a_layer_of_states_that_is_not_there_is_told(layer):
    with pytest.raises(ValueError, match=f'layer={layer} is not there: give a number from 0 to 2, or from -3 to -1'): plot_states(States(classifier(), tok, TEXT), layer=layer)

def test_places_are_counted_from_the_end_too():
    w = TextWriter(t5(), tok, max_len=4)
    v,last = attention_view(w, TEXT, 'A bird', at=-1),attention_view(w, TEXT, 'A bird')
    assert v.at==len(v.wrote)-1 and v.looks_at(-1)==last.looks_at(v.at) and f'data-at="{v.at}"' in v._repr_html_()
    all_ = attention_view(w, TEXT, 'A bird', top=None)
    assert all(a.idx.shape[-1]==a.n for a in all_.sides.values()) and all_.kept()=='All of the attention is shown.'

@pytest.mark.parametrize('arch', ['encoder_decoder','decoder_lm'])
def test_a_picture_says_what_it_leaves_out(arch):
    "The share of every kind of attention, of this text, under the picture; not rounded up"
    v = attention_view(TextWriter(t5(arch), tok, max_len=4), TEXT, 'A bird', top=2)
    say = v.kept()
    assert '2 largest weights' in say and say in v._repr_html_()
    for k,a in v.sides.items():
        pct = float(re.search(rf'([0-9.]+) % where the {re.escape(ATTENTION_SIDES[k])}', say)[1])
        assert 0<=100*a.dense().sum(-1).mean()-pct<.1+1e-3

def test_a_bias_is_that_of_a_stack():
    for o in (t5(),TextWriter(t5(), tok),None):
        with pytest.raises(TypeError, match='is no RelativeBias: give the one of a stack, model.encoder.bias'): plot_bias(o)

def test_losses_of_what_is_no_classifier():
    "A T5 that answers with labels is looked at through its scores"
    w = TextWriter(t5(), tok, max_len=4)
    with pytest.raises(TypeError, match='TextWriter does not answer texts with labels: give TextPredictor or ClassifierLearner; for a T5'): Interpretation.from_table(w, pd.DataFrame(dict(text=['a'], label=['b'])))
    with pytest.raises(TypeError, match='Text2TextLearner does not answer'): Interpretation.from_learner(Text2TextLearner.__new__(Text2TextLearner))
    texts,labels = ['a fine film','a river'],['film','place']
    it = Interpretation(texts, [0,1], w.score(w.inputs(texts), labels), labels)
    np.testing.assert_allclose(it.probs, w.probs(texts, labels), atol=1e-5)

def test_colours_of_top_losses_take_few_points(monkeypatch):
    "A model that has learnt nothing changes its answer by next to nothing: two per cent of that took 240 points a text"
    import ulmfit_t5.interpret.attribution as A
    points,at = [],A._at
    monkeypatch.setattr(A, '_at', lambda p, alphas: (points.append(len(alphas)),at(p, alphas))[1])
    it = interpretation()
    m = it.pred.model
    with torch.no_grad(): m.encoder.embed.weight.mul_(30.) # a curved way from the empty text
    h = it.show_top_losses(3).html
    assert h.count('border-left')==3 and 3*16<=sum(points)<=3*(16+32)
    few = sum(points)
    points.clear()
    it.show_top_losses(3, tol=.001, most=128)
    assert sum(points)>few
    points.clear()
    it.show_top_losses(3, method='input_x_gradient')
    assert sum(points)==3

def test_a_text_without_words_among_top_losses():
    pred = TextPredictor(classifier(), tok, ['animal','plant','place'])
    it = Interpretation.from_table(pred, pd.DataFrame(dict(text=['',TEXT], label=['plant','plant'])))
    assert it.show_top_losses(2).html.count('a text without words')==1
