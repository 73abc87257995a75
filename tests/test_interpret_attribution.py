"Attributions: completeness on every kind of model, equality with Captum, the right side of a T5, and no trace left in the model"
import numpy as np,pytest,torch
from torch import nn
from ulmfit_t5.core import seed_everything
from ulmfit_t5.data.tokenizer import bundled_tokenizer
from ulmfit_t5.inference import TextPredictor
from ulmfit_t5.interpret.attribution import *
from ulmfit_t5.interpret.captum import *
from ulmfit_t5.interpret.words import *
from ulmfit_t5.models.awd_lstm import AWDLSTM
from ulmfit_t5.models.heads import BiClassifier,TextClassifier
from ulmfit_t5.models.t5 import ARCHS,T5
from ulmfit_t5.writer import TextWriter,Written,vocab_config

LABELS,TEXT = ['animal','plant','place'],'The blue heron is a wading bird found along rivers, lakes and marshes of North America and as far south as the Caribbean.'
tok = bundled_tokenizer()

def classifier(cell='lstm', seed=0, **kwargs):
    seed_everything(seed)
    return TextClassifier(AWDLSTM(len(tok), 12, 16, 2, cell=cell), 3, **dict(bptt=6, max_len=600)|kwargs)

def predictor(model=None, task='single', **kwargs): return TextPredictor(model or classifier(), tok, LABELS if task!='regression' else ['value'], task, **kwargs)

def complete(a, tol=.02): return abs(a.total.sum()-(a.value-a.base))<=tol*abs(a.value-a.base)+2e-3

KINDS = {'chunks':dict(), 'detached chunks':dict(bptc='detached'), 'qrnn':dict(cell='qrnn'), 'one chunk':dict(bptt=200), 'maximum':dict(pool='max')}

@pytest.mark.parametrize('kw', KINDS.values(), ids=KINDS.keys())
def test_shares_are_complete(kw):
    pred = predictor(classifier(**kw))
    for target in LABELS:
        a = pred.explain(TEXT, target, tol=.005)
        assert complete(a) and a.note=='' and a.outputs==[target]
        z = pred.logits([TEXT])[0]
        y = LABELS.index(target)
        assert a.value==pytest.approx(float(z[y]-z[[i for i in range(3) if i!=y]].logsumexp(0)), abs=1e-4)

@pytest.mark.parametrize('task', ['single','multi','regression'])
def test_tasks(task):
    m = classifier() if task!='regression' else TextClassifier(AWDLSTM(len(tok), 12, 16, 2), 1, y_range=(0,5))
    a = predictor(m, task).explain(TEXT)
    assert complete(a) and a.unit==('value' if task=='regression' else 'log-odds')

def test_both_directions():
    "The ensemble reads two embeddings; a backward predictor gives its words in reading order"
    both = predictor(BiClassifier(classifier(), classifier(seed=1)))
    a = both.explain(TEXT, 'plant', tol=.005)
    assert complete(a)
    b = predictor(classifier(seed=1), backwards=True).explain(TEXT, 'plant')
    assert a.words==b.words and a.words[1]=='The' and complete(b)

def test_chunks_change_nothing():
    "The same weights read in chunks of 6 and in one piece give the same shares"
    a,b = (predictor(classifier(bptt=n)).explain(TEXT, 'animal', steps=64) for n in (6,300))
    np.testing.assert_allclose(a.scores, b.scores, atol=1e-4)

def test_what_lies_before_the_window():
    "It keeps its words in the empty text, gets no share, and is told"
    pred = predictor(classifier(max_len=12))
    n = len(tok.encode(TEXT))
    a = pred.explain(TEXT, 'animal')
    far = max(0, -(-n//6)-2)*6
    assert f'{far} tokens lie before the window' in a.note and complete(a)
    assert all(s==0 for _,s in a.pieces[:far]) and any(s!=0 for _,s in a.pieces[far:])

def test_windows_of_both_directions():
    "One window ends the text, the other begins it: the difference is shared out all the same"
    a = predictor(BiClassifier(classifier(max_len=12), classifier(seed=1, max_len=12))).explain(TEXT, 'plant', tol=.005)
    assert complete(a) and a.pieces[2][1].any() and a.pieces[-1][1].any() and 'in each direction' in a.note

def captum(): return pytest.importorskip('captum.attr', reason='Captum is an extra: pip install ulmfit_t5[explain]')

@pytest.mark.parametrize('n', [9,23])
def test_integrated_gradients_equal_captum(n):
    "The same points, the same path, the same numbers; on the embedding of a chunked classifier"
    attr = captum()
    pred = predictor()
    p = classifier_probe(pred, TEXT, 1)
    enc,V = pred.model.eval().encoder.embed,enc_size(pred)
    def forward(x): # (n t d)
        with feed_vectors(enc, x.flatten(0, 1)): return p.f(V+torch.arange(x.shape[0]*x.shape[1]).view(x.shape[:2]))[:,0]
    x,b = p.reals[0][None],p.bases[0][None]
    peer = attr.IntegratedGradients(forward).attribute(x, b, n_steps=n, method='gausslegendre').sum(-1)[0]
    np.testing.assert_allclose(integrated_gradients(p, n, most=n).scores[:,0], peer.numpy(), atol=1e-5)
    peer = attr.InputXGradient(forward).attribute(x.requires_grad_())[0]
    own = input_x_gradient(p._replace(bases=[torch.zeros_like(p.bases[0])])).scores[:,0]
    np.testing.assert_allclose(own, peer.sum(-1).detach().numpy(), atol=1e-5)

def test_a_function_of_vectors_is_a_layer():
    "`LayerIntegratedGradients` looks at the embedding with hooks of its own: where a text is read in one piece it can, and finds what we find"
    attr = captum()
    pred = predictor(classifier(bptt=200))
    p = classifier_probe(pred, TEXT, 1, 'unk')
    ids = p.ids[None]
    empty = torch.where((ids<9)&(ids!=tok.unk_id), ids, tok.unk_id)
    with explaining(pred.model): peer = attr.LayerIntegratedGradients(p.f, p.embeds[0]).attribute(ids, empty, target=0, n_steps=20).sum(-1)[0]
    np.testing.assert_allclose(captum_method('IntegratedGradients', n_steps=20)(p).scores[:,0], peer.detach().numpy(), atol=1e-5)

def asked(): # (what answers, a text, an answer to ask about)
    both = predictor(BiClassifier(classifier(), classifier(seed=1)))
    return dict(classifier=(predictor(),TEXT,'plant'), both=(both,TEXT,'plant'), backwards=(predictor(backwards=True),TEXT,'plant'),
        t5=(writer(),'Which river runs through Vienna?','Danube'))

@pytest.mark.parametrize('kind', ['classifier','both','backwards','t5'])
def test_methods_of_captum_on_our_models(kind):
    "The same result as ours where the method is the same; complete where the method is; and one that only takes away knows nothing of directions"
    captum()
    who,text,target = asked()[kind]
    own = who.explain(text, target, steps=32, most=32)
    a = who.explain(text, target, method=captum_method('IntegratedGradients', n_steps=32))
    np.testing.assert_allclose(a.scores, own.scores, atol=1e-4)
    assert (a.words,a.outputs,a.method)==(own.words,own.outputs,'captum.IntegratedGradients')
    assert own.value==pytest.approx(a.value) and 'for' in a._repr_html_()
    s = who.explain(text, target, method=captum_method('ShapleyValueSampling', n_samples=2))
    assert s.total.sum()==pytest.approx(s.value-s.base, abs=1e-3)
    f = who.explain(text, target, method=captum_method('FeatureAblation'))
    np.testing.assert_allclose(f.total, left_out(who, text, target, f), atol=1e-4)

def left_out(who, text, target, a):
    "What the answer loses without each word, by hand"
    def ablate(p):
        out = []
        for i in range(len(p.ids)):
            rows = [x.clone() for x in p.reals]
            for x,b in zip(rows, p.bases): x[i] = b[i]
            with explaining(p.model),torch.no_grad(): out.append(p.ends()[0]-p(*[o[None] for o in rows])[0].numpy())
        return Shares(np.stack(out), *p.ends(), np.zeros(1), 1)
    return who.explain(text, target, method=ablate).total

@pytest.mark.parametrize('name', CAPTUM)
def test_each_method_of_captum_runs(name):
    captum()
    seed_everything(1)
    a = predictor().explain(TEXT, 'animal', method=captum_method(name))
    assert np.isfinite(a.scores).all() and a.scores.shape==(len(a.words),1)
    if name!='Lime': assert abs(a.scores).max()>0 # its Lasso may leave nothing of small effects

@pytest.mark.parametrize('name', ['LayerIntegratedGradients','DeepLift','Nothing'])
def test_what_does_not_explain_a_function_is_refused(name):
    with pytest.raises(ValueError, match=f'{name}.* choose one of IntegratedGradients'): captum_method(name)

def enc_size(pred): return pred.model.encoder.embed.num_embeddings

def writer(arch='encoder_decoder'):
    seed_everything(3)
    return TextWriter(T5(vocab_config(tok, d_model=32, d_ff=64, n_layers=2, n_heads=2, d_kv=16, arch=arch)).eval(), tok, max_len=5)

@pytest.mark.parametrize('arch', [o for o in ARCHS if o!='encoder'])
def test_t5_is_asked_about_its_input(arch):
    "Shares belong to the words that were read, one column for each token that is written; their sum is that of the log-probabilities"
    w = writer(arch)
    a = w.explain('Which river runs through Vienna?', 'Danube', tol=.01)
    assert a.words[1:-1]==['Which','river','runs','through','Vienna?'] and a.words[-1]=='xxeos'
    assert a.scores.shape==(len(a.words),len(a.outputs)) and ''.join(a.outputs[:-1]).lower().endswith('danube')
    assert complete(a, .05)
    assert a.value==pytest.approx(w.score(['Which river runs through Vienna?'], ['Danube'])[0,0], abs=1e-3)

def test_t5_shares_follow_the_input():
    "A model whose first token copies what it read: the share is that of the copied word"
    w = writer()
    m = w.model
    a = w.explain('Which river runs through Vienna?', 'Danube', tol=.01)
    for b in m.decoder.blocks: nn.init.zeros_(b.cross.o.weight) # the decoder can not look any more
    deaf = w.explain('Which river runs through Vienna?', 'Danube')
    assert abs(deaf.scores).max()<1e-6<abs(a.scores).max()

def test_nothing_stays_behind():
    pred = predictor()
    pred.model.train()
    before = {k:v.clone() for k,v in pred.model.state_dict().items()}
    pred.explain(TEXT)
    after = pred.model.state_dict()
    assert pred.model.training and all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.grad is None for p in pred.model.parameters())
    assert not pred.model.encoder.embed._forward_hooks and not pred.model.encoder.embed._forward_pre_hooks

def test_hooks_go_where_the_model_fails():
    e = nn.Embedding(5, 2)
    with pytest.raises(ZeroDivisionError), feed_vectors(e, torch.zeros(1, 2)): 1/0
    assert not e._forward_hooks and not e._forward_pre_hooks

def test_a_sum_that_is_not_reached_is_told():
    a = predictor().explain(TEXT, 'animal', steps=1, most=1)
    assert not complete(a) and 'is missing' in a.note
    x = predictor().explain(TEXT, 'animal', method='input_x_gradient')
    assert not complete(x) and 'the shares sum to' in str(x)

def test_deleting_what_speaks_for_an_answer_hurts_it():
    "Words with the greatest shares, made empty one after another, take more away than random ones"
    seed_everything(0)
    pred = predictor(classifier(seed=4, pool='mean'))
    p = classifier_probe(pred, TEXT, 0)
    s = integrated_gradients(p).scores[:,0]
    def left(order): # mean of the answer over deletions
        rows,res = p.reals[0].clone(),[]
        for i in order:
            rows[i] = p.bases[0][i]
            with torch.no_grad(),feed_vectors(p.embeds[0], rows): res.append(float(p.f(p.embeds[0].num_embeddings+torch.arange(len(rows))[None])))
        return np.mean(res)
    order = np.argsort(-s)
    chance = [left(np.random.default_rng(i).permutation(len(s))) for i in range(8)]
    assert left(order)<min(chance) and left(order[::-1])>max(chance)

def test_coloured_text_is_safe_and_small():
    a = predictor().explain('<script>alert(1)</script> & "quotes"')
    h = a._repr_html_()
    assert '<script' not in h and '&lt;script' in h.lower()
    assert len(predictor().explain(' '.join([TEXT]*3))._repr_html_())<60_000

@pytest.mark.parametrize('text', ['xxbos','a'])
def test_short_texts(text): assert complete(predictor().explain(text, 'animal'))

WRONG = [(dict(text=''),"'' has no words"), (dict(text='   '),"'   ' has no words"), (dict(text=None),'text 0 is None'), (dict(text=[TEXT]),'text 0 is .* a list: give a string'),
    (dict(steps=0),'steps=0: an integral needs points'), (dict(steps='x'),"steps='x'"), (dict(target=99),'target=99, .* 3 outputs: give a number from 0 to 2'),
    (dict(target=-1),'target=-1, but'), (dict(target=3),'target=3, but'), (dict(baseline=999_999),'baseline=999999 is no token: give an id from 0 to 9999'), (dict(baseline=None),'baseline=None is no token')]

@pytest.mark.parametrize('kw,say', WRONG, ids=lambda o: str(o)[:30])
def test_a_wrong_question_to_a_classifier_is_told(kw, say):
    with pytest.raises((ValueError,TypeError), match=say): predictor().explain(**dict(text=TEXT)|kw)

WRONG_T5 = [(dict(target=''),"target='' is empty: give the answer"), (dict(target='  '),"target='  ' is empty"), (dict(target=3),'target=3 is no text'), (dict(text=[TEXT]),'is not one text'),
    (dict(baseline=999_999, target='bird'),'baseline=999999 is no token: give an id from 0 to 10099'), (dict(target='<extra_id_100>'),'there are 100, from <extra_id_0> on'), (dict(text=''),'not empty')]

@pytest.mark.parametrize('kw,say', WRONG_T5, ids=lambda o: str(o)[:30])
def test_a_wrong_question_to_a_t5_is_told(kw, say):
    with pytest.raises((ValueError,TypeError), match=say): writer().explain(**dict(text=TEXT)|kw)

def test_all_fields_of_a_text_are_explained():
    "A text of two columns is read as one, as it is for an answer"
    p = predictor()
    a = p.explain(('A bird','along rivers'), 'animal')
    assert {'bird','along','rivers'}<=set(a.words) and complete(a)
    z = p.logits([('A bird','along rivers')])[0]
    assert a.value==pytest.approx(float(z[0]-z[1:].logsumexp(0)), abs=1e-4)

def test_sentinels_are_explained_by_name():
    "They have rows behind the pieces of the vocabulary, in what is read as in what is written, also where the model writes them by itself"
    w = writer()
    a = w.explain('Which <extra_id_7> runs through Vienna?', '<extra_id_7> river <extra_id_8>', steps=64, most=64)
    assert a.words[1:4]==['Which','<extra_id_7>','runs'] and a.words[-1]=='xxeos' and complete(a, .1)
    assert (a.outputs[0],a.outputs[-2]) == ('<extra_id_7>','<extra_id_8>')
    assert [n for n,_ in a.pieces].count('<extra_id_7>')==1 and '&lt;extra_id_7&gt;' in a._repr_html_()
    w.write = lambda texts, **kwargs: Written(['<extra_id_0> river'], np.ones(1, bool), np.zeros(1), 0, '')
    assert w.explain('A river', method='input_x_gradient').outputs[0]=='<extra_id_0>'
