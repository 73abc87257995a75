"Ours against fastai's AWD_LSTM from the same weights: logits, states, classifiers, gradients, sizes, dropouts"
import pytest,torch
from fastai.text.all import AWD_LSTM,awd_lstm_clas_config,awd_lstm_lm_config,get_language_model,get_text_classifier
from fastai.text.data import pad_chunk
from fastai.text.models.awdlstm import EmbeddingDropout,RNNDropout,WeightDropout
from torch import nn
from torch.nn import functional as F
from ulmfit_t5.core import seed_everything
from ulmfit_t5.models.awd_lstm import *
from ulmfit_t5.models.checkpoint import load_tensors
from ulmfit_t5.models.fastai_weights import fastai_names
from ulmfit_t5.models.heads import *
from ulmfit_t5.models.losses import *
from ulmfit_t5.models.layers import DroppedEmbedding,LSTMLayer,VariationalDropout

V,size = 60,dict(emb_sz=16, n_hid=24, n_layers=3)
none = dict(hidden_p=0., input_p=0., embed_p=0., weight_p=0., output_p=0.)
close = dict(atol=1e-5, rtol=1e-5)

def lively(m):
    "Weights large enough that every token and every state makes a visible difference"
    for k,p in m.named_parameters():
        if 'encoder.weight' in k or 'decoder.weight' in k: p.data.normal_()
        elif 'rnns' in k: p.data.normal_(std=.4)
    m.reset()
    return m

def theirs_lm(**kw): return lively(get_language_model(AWD_LSTM, V, config={**awd_lstm_lm_config,**size,**kw}))
def ours_from(sd, **kw):
    "Our language model with the weights of fastai's"
    lm = language_model(V, **{**size,**none,**kw})
    return load_tensors(lm, {k:sd[v] for k,v in fastai_names(size['n_layers']).items()})

@pytest.fixture(autouse=True)
def seed(): seed_everything(3)

def pair(**kw):
    them = theirs_lm(**kw)
    them[1].decoder.bias.data.normal_()
    return them,ours_from(them.state_dict(), **kw)

@pytest.mark.parametrize('b,t', [(1,1),(4,70),(7,13)])
def test_logits_and_state_over_batches(b, t):
    them,us = (m.eval() for m in pair())
    them.reset()
    us.reset()
    with torch.no_grad():
        for i in range(4):
            x = torch.randint(0, V, (b,t))
            torch.testing.assert_close(us.logits(us(x)), them(x)[0], **close)
            for (h,c),(th,tc) in zip(us.state, them[0].hidden):
                torch.testing.assert_close(h, th, **close)
                torch.testing.assert_close(c, tc, **close)
        carried = us.logits(us(x))[:,0]
        us.reset()
        them.reset()
        fresh = us.logits(us(x))
        torch.testing.assert_close(fresh, them(x)[0], **close)
        assert (fresh[:,0]-carried).abs().max()>.01 # the state matters

def match_grads(us, them, names):
    g = dict(them.named_parameters())
    assert len(names)==len(list(us.named_parameters()))
    for k,p in us.named_parameters(): torch.testing.assert_close(p.grad, g[names[k]].grad, **close, msg=lambda m: f'{k}: {m}')

def test_gradients_without_dropout():
    "Two truncated steps: loss and every gradient, with the state detached between them as in training"
    them,us = (m.train() for m in pair(**none))
    them.reset()
    us.reset()
    lossf = LMLoss(us)
    for _ in range(2):
        x,y = torch.randint(0, V, (5,11)),torch.randint(0, V, (5,11))
        theirs = F.cross_entropy(them(x)[0].flatten(0, 1), y.flatten())
        ours = lossf(us(x), y)
        torch.testing.assert_close(ours, theirs, **close)
        theirs.backward()
        ours.backward()
    names = {k:v for k,v in fastai_names(3).items() if k!='decoder.weight'} # tied
    match_grads(us, them, names)

def classifiers(n_out=3, bptt=7, max_len=28, **kw):
    "A pair of classifiers; fastai's linear layers have no bias, so ours is zero"
    cfg = {**awd_lstm_clas_config,**size,**none,**kw}
    them = lively(get_text_classifier(AWD_LSTM, V, n_out, seq_len=bptt, max_len=max_len, config=cfg, ps=[.1], drop_mult=1.))
    enc = AWDLSTM(V, **size, **{k:v for k,v in none.items() if k!='output_p'})
    us = TextClassifier(enc, n_out, bptt, max_len, head_p=(0,.1), bptc='detached')
    sd = them.state_dict()
    ours = {k:sd['0.module.'+v.removeprefix('0.')] for k,v in fastai_names(3, lm=False).items()}
    norms = [m for m in them[1].modules() if isinstance(m, nn.BatchNorm1d)]
    lins = [m for m in them[1].modules() if isinstance(m, nn.Linear)]
    names = {k:'0.module.'+v.removeprefix('0.') for k,v in fastai_names(3, lm=False).items()}
    where = {id(p):k for k,p in them.named_parameters()}
    for i,(n,l) in enumerate(zip(norms, lins)):
        n.weight.data.uniform_(.5, 1.5)
        n.bias.data.normal_()
        n.running_mean.uniform_(-.1, .1)
        n.running_var.uniform_(.5, 2)
        ours.update({f'head.{4*i}.{k}':t for k,t in n.state_dict().items()})
        ours.update({f'head.{4*i+2}.weight':l.weight,f'head.{4*i+2}.bias':torch.zeros(l.out_features)})
        names.update({f'head.{4*i}.{k}':where[id(p)] for k,p in n.named_parameters()})
        names[f'head.{4*i+2}.weight'] = where[id(l.weight)]
    return them,load_tensors(us, ours),names

texts = lambda lens: [torch.randint(2, V, (n,)) for n in lens]
def padded(ts): return nn.utils.rnn.pad_sequence(ts, batch_first=True, padding_value=1)

def test_classifier_logits_of_unequal_texts():
    "Ours in one batch, fastai's one text at a time; lengths below, at and above chunk and window"
    them,us,_ = classifiers()
    them.eval()
    us.eval()
    ts = texts([1,6,7,8,27,28,29,60,100,3])
    with torch.no_grad():
        alone = torch.cat([them(t[None])[0] for t in ts])
        torch.testing.assert_close(us(padded(ts)), alone, **close)

def test_classifier_logits_of_a_fastai_batch():
    """Padded as fastai does, where the longest text fills its chunks. Where it does not, fastai looks for the last state of a
    short text in the chunk before, and its batch disagrees with its own single texts."""
    them,us,_ = classifiers()
    them.eval()
    us.eval()
    ts = texts([35,31,24,10,3])
    x = torch.stack([pad_chunk(t, seq_len=7, pad_len=35) for t in ts])
    with torch.no_grad(): torch.testing.assert_close(us(padded(ts)), them(x)[0], **close)

def test_classifier_gradients():
    "Training mode, batch statistics and all, within the window that both pool"
    them,us,names = classifiers()
    for m in us.head,them[1]:
        for o in m.modules():
            if isinstance(o, nn.Dropout): o.p = 0.
    ts,y = texts([28,24,17,3]),torch.tensor([0,1,2,1])
    x = torch.stack([pad_chunk(t, seq_len=7, pad_len=28) for t in ts])
    lt,lu = F.cross_entropy(them.train()(x)[0], y),classifier_loss('single')(us.train()(padded(ts)), y)
    torch.testing.assert_close(lu, lt, **close)
    lt.backward()
    lu.backward()
    g,o = dict(them.named_parameters()),dict(us.named_parameters())
    for k,v in names.items(): torch.testing.assert_close(o[k].grad, g[v].grad, **close, msg=lambda m: f'{k}: {m}')
    assert set(o)-set(names)=={'head.2.bias','head.6.bias'} and len(names)==len(g) # theirs have no such bias

def test_smoothing_equals_fastai():
    from fastai.losses import LabelSmoothingCrossEntropyFlat
    z,y = torch.randn(6,4),torch.randint(0, 4, (6,))
    torch.testing.assert_close(classifier_loss('single', .1)(z, y), LabelSmoothingCrossEntropyFlat(eps=.1)(z, y))

def n(m): return sum(p.numel() for p in m.parameters())

@pytest.mark.parametrize('n_hid,layers,stack', [(1150,[7139200,10589200,2483200],20211600), (1152,[7160832,10626048,2486400],20273280)])
def test_sizes_of_the_paper(n_hid, layers, stack):
    "Worked numbers of the recurrent stack, and the whole tied model as stack + 401 V; the same count in fastai"
    with torch.device('meta'):
        lm = language_model(100, AWD_LSTM_LM, n_hid=n_hid)
        assert [n(l) for l in lm.encoder.layers]==layers and sum(layers)==stack
        assert n(lm)==stack+401*100
        for v,total in {(1150,33278):33556078,(1152,33278):33617758,(1150,60002):44272402,(1152,60002):44334082}.items():
            if v[0]==n_hid: assert n(language_model(v[1], AWD_LSTM_LM, n_hid=n_hid))==total
        assert [sum(p.numel() for p in g) for g in lm.groups()][:4]==[40000,*layers]

def test_size_equals_fastai_and_multifit():
    them,us = pair()
    assert n(us)==n(them)
    with torch.device('meta'): q = language_model(15000, QRNN_LM)
    assert [n(l) for l in q.encoder.layers]==[3729456,7230768,7230768,1863600] and n(q)==26069592

def test_groups_hold_what_fastai_splits():
    "Classifier groups of the same sizes in the same order: embedding, three layers, head"
    from fastai.text.models.awdlstm import awd_lstm_clas_split
    them,us,_ = classifiers()
    ours,theirs = ([sum(p.numel() for p in g) for g in gs] for gs in (us.groups(), awd_lstm_clas_split(them)))
    assert ours[:4]==theirs[:4] and ours[4]==theirs[4]+50+3 # our two biases

P = .3
def frac(x): return (x==0).float().mean().item()

def test_variational_dropout_like_fastai():
    x = torch.ones(40,7,500)
    for d in (VariationalDropout(P),RNNDropout(P)):
        y = d.train()(x)
        assert abs(frac(y)-P)<.01 and abs(y.mean()-1)<.02
        assert torch.equal(y, y[:,:1].expand_as(y)) and (y[0,0]!=y[1,0]).any()
        assert torch.allclose(y[y!=0], torch.tensor(1/(1-P)))
        assert torch.equal(d.eval()(x), x)

def test_embedding_dropout_like_fastai():
    "Whole rows go, every occurrence of a word together, survivors are scaled"
    ours = DroppedEmbedding(4000, 5, 1, P).train()
    base = nn.Embedding(4000, 5, padding_idx=1)
    ours.weight.data.fill_(1)
    base.weight.data.fill_(1)
    ids = torch.arange(4000).repeat(2, 1)
    for e in (ours,EmbeddingDropout(base, P).train()):
        y = e(ids)
        assert abs(frac(y)-P)<.03 and torch.equal(y[0], y[1])
        assert torch.equal(y, y[...,:1].expand_as(y)) and torch.allclose(y[y!=0], torch.tensor(1/(1-P)))
        assert frac(e.eval()(ids))==0

def test_weight_dropout_like_fastai(monkeypatch):
    "The share of recurrent weights that is dropped; a new mask each forward, none in eval, the parameter itself untouched"
    ours = LSTMLayer(8, 100, P)
    before,used = ours.weight_hh.clone(),[]
    real = torch._VF.lstm
    def spy(x, hc, ws, *a):
        used.append(ws[1].detach().clone())
        return real(x, hc, ws, *a)
    monkeypatch.setattr(torch._VF, 'lstm', spy)
    x = torch.randn(3,2,8)
    for _ in range(2): ours.train()(x)
    ours.eval()(x)
    assert abs(frac(used[0])-P)<.01 and (used[0]!=used[1]).any() and torch.equal(used[2], before) and torch.equal(ours.weight_hh, before)
    kept = used[0]!=0
    torch.testing.assert_close(used[0][kept], before[kept]/(1-P))
    them = WeightDropout(nn.LSTM(8, 100), P).train()
    them(x)
    assert abs(frac(them.module.weight_hh_l0)-frac(used[0]))<.02

def test_dropouts_are_spent_as_in_fastai():
    "With all dropouts on, the spread of the training loss over masks is the same as fastai's, and so is its mean"
    p = dict(hidden_p=.3, input_p=.4, embed_p=.1, weight_p=.5, output_p=.3)
    them,us = (m.train() for m in pair(**p))
    for m in (us.encoder.embed,them[0].encoder): m.weight.data.mul_(10)
    x,y,lossf = torch.randint(2, V, (8,20)),torch.randint(2, V, (8,20)),LMLoss(us)
    def theirs():
        them.reset()
        return F.cross_entropy(them(x)[0].flatten(0, 1), y.flatten())
    def ours():
        us.reset()
        return lossf(us(x), y)
    with torch.no_grad(): a,b = (torch.stack([f() for _ in range(300)]) for f in (ours,theirs))
    assert abs(a.mean()-b.mean()) < 4*((a.var()+b.var())/300).sqrt()
    assert .75 < a.std()/b.std() < 1.33
