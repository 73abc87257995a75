"Heads: pooling, chunked documents and classifiers as properties"
import copy,subprocess,sys
import pytest,torch
from hypothesis import given,settings,strategies as st
from torch import nn
from ulmfit_t5.core import seed_everything
from ulmfit_t5.models.awd_lstm import AWDLSTM
from ulmfit_t5.models.pooling import *
from ulmfit_t5.models.heads import *
from ulmfit_t5.models.losses import *
from ulmfit_t5.models.heads import draw_bptt

def encoder(cell='lstm', **kw): return AWDLSTM(40, **{**dict(emb_sz=8, n_hid=12, n_layers=2, cell=cell), **kw})
def no_drop(cell='lstm'): return encoder(cell, hidden_p=0, input_p=0, embed_p=0, weight_p=0)
def texts(lens): return [torch.randint(9, 40, (n,)) for n in lens]
def pad(ts, extra=0):
    ids = nn.utils.rnn.pad_sequence(ts, batch_first=True, padding_value=1)
    return nn.functional.pad(ids, (0,extra), value=1)

@settings(max_examples=60, deadline=None)
@given(lens=st.lists(st.integers(1, 60), min_size=1, max_size=7), extra=st.integers(0, 20), bptt=st.integers(1, 12),
    max_len=st.integers(1, 50), pool=st.sampled_from(['last','max','mean','concat']), cell=st.sampled_from(['lstm','qrnn']),
    all_=st.booleans(), bptc=st.sampled_from(['window','detached']), seed=st.integers(0, 9))
def test_answer_does_not_depend_on_companions(lens, extra, bptt, max_len, pool, cell, all_, bptc, seed):
    seed_everything(seed)
    clf = TextClassifier(encoder(cell), 3, bptt, max_len, pool, pool_all=all_, bptc=bptc).eval()
    ts = texts(lens)
    with torch.no_grad(): torch.testing.assert_close(clf(pad(ts, extra)), torch.cat([clf(t[None]) for t in ts]), atol=1e-5, rtol=1e-5)

@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 80), bptt=st.integers(1, 15), cell=st.sampled_from(['lstm','qrnn']))
def test_chunks_equal_one_long_pass(n, bptt, cell):
    "With a window over everything, or with running pooling, chunks give what one pass over the whole text gives"
    seed_everything(n)
    enc,t = encoder(cell).eval(),texts([n])[0][None]
    with torch.no_grad():
        want = concat_pool(enc(t).out, torch.ones(1, n, dtype=torch.bool))
        for kw in (dict(max_len=1000), dict(max_len=bptt, pool_all=True)):
            torch.testing.assert_close(DocumentEncoder(enc, bptt, **kw).eval()(t), want, atol=1e-5, rtol=1e-5)

def test_unmasked_pooling_does_depend_on_companions():
    "The defect that the mask repairs is there in the ablation"
    seed_everything()
    clf = TextClassifier(encoder(), 3, 5, 50, 'concat_unmasked').eval()
    a,b = texts([3,40])
    with torch.no_grad(): assert (clf(pad([a,b]))[0]-clf(a[None])[0]).abs().max()>1e-4

def test_explicit_lengths_and_order():
    seed_everything()
    clf,ts = TextClassifier(encoder(), 3, 5, 20).eval(),texts([4,9,9,1])
    ids,junk = pad(ts),pad(ts).clone()
    junk[ids==1] = 33
    lens = torch.tensor([4,9,9,1])
    with torch.no_grad():
        assert torch.equal(clf(ids), clf(junk, lens))
        perm = torch.tensor([2,0,3,1])
        torch.testing.assert_close(clf(ids[perm]), clf(ids)[perm], atol=1e-6, rtol=0)

@pytest.mark.parametrize('shape,lens,msg', [((0,3), None, 'at least one of each'), ((3,), None, r'ids are \(3,\)'),
    ((2,3), [3,0], 'from 1 to 3'), ((2,3), [3,4], 'from 1 to 3'), ((2,3), [3], 'give 2 numbers')])
def test_impossible_batches(shape, lens, msg):
    lens = lens and torch.tensor(lens)
    with pytest.raises(ValueError, match=msg): TextClassifier(encoder(), 3)(torch.full(shape, 9), lens)

@pytest.mark.parametrize('kw,msg', [(dict(pool='sum'), 'choose one of'), (dict(bptc='x'), "'window' or 'detached'"),
    (dict(bptt=0), 'at least 1'), (dict(max_len=0), 'at least 1'), (dict(head_p=[.1]), 'one for each')])
def test_impossible_settings(kw, msg):
    with pytest.raises(ValueError, match=msg): TextClassifier(encoder(), 3, **kw)

def grads(clf, ids):
    clf.zero_grad()
    clf(ids).square().sum().backward()
    return [p.grad.clone() for p in clf.parameters()]

def test_gradients_reach_what_they_should():
    seed_everything()
    t = torch.arange(9, 39)[None] # each token once: the embedding gradient tells which positions learn
    enc = no_drop()
    def reached(**kw): return (grads(TextClassifier(enc, 2, bptt=5, **kw).eval(), t)[0].abs().sum(1)>0)[9:39].nonzero()[:,0].min().item()
    assert reached(max_len=10)==20            # a window of two chunks
    assert reached(max_len=11)==15            # rounded up to three
    assert reached(max_len=1000)==0
    assert reached(max_len=10, bptc='detached')==20
    assert reached(max_len=1000, bptc='detached', pool='last')==25   # one chunk behind the last state
    assert reached(max_len=1000, bptc='window', pool='last')==0      # the whole chain
    assert reached(max_len=10, pool_all=True)==20

@pytest.mark.parametrize('cell', ['lstm','qrnn'])
def test_window_gradients_equal_plain_autograd(cell):
    seed_everything()
    enc,t = no_drop(cell),texts([23])[0][None]
    head = TextClassifier(enc, 2, bptt=4, max_len=1000).eval()
    got = grads(head, t)
    head.zero_grad()
    head.head(concat_pool(enc(t).out, torch.ones(1,23,dtype=torch.bool))).square().sum().backward()
    for a,b in zip(got, (p.grad for p in head.parameters())): torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)

@pytest.mark.parametrize('cell', ['lstm','qrnn'])
def test_autocast_keeps_gradients_after_a_long_prefix(cell):
    "Weights that autocast caught without a graph must not be used in the window"
    seed_everything()
    clf,t = TextClassifier(no_drop(cell), 2, bptt=5, max_len=10).eval(),texts([60,12,3])
    clf.zero_grad()
    with torch.autocast('cpu', torch.bfloat16): out = clf(pad(t))
    assert out.dtype==torch.float32
    out.square().sum().backward()
    low = [p.grad.clone() if p.grad is not None else None for p in clf.parameters()]
    for (n,p),a,b in zip(clf.named_parameters(), low, grads(clf, pad(t))):
        assert a is not None, n
        assert (a-b).norm() <= .4*b.norm()+1e-7, n

def test_batch_of_one_trains():
    clf = TextClassifier(encoder(), 2, bptt=5).train()
    before = clf.head[0].running_mean.clone()
    clf(texts([7])[0][None]).sum().backward()
    assert torch.equal(before, clf.head[0].running_mean)
    clf(pad(texts([7,3])))
    assert not torch.equal(before, clf.head[0].running_mean)

def test_last_out_is_there_in_training_only_and_not_copied():
    clf = TextClassifier(encoder(), 2, bptt=5).train()
    clf(pad(texts([7,3])))
    assert clf.last_out.raw.shape==(2,3,8)
    assert copy.deepcopy(clf).last_out is None
    clf.eval()
    clf(pad(texts([7,3])))
    assert clf.last_out is None

def test_learns_a_rule():
    "Is token 20 anywhere in the text? Found by maximum pooling, far from the end"
    seed_everything(1)
    ts = texts([40]*64)
    y = torch.arange(64)%2
    for t,o in zip(ts, y):
        t[t==20] = 21
        if o: t[5] = 20
    clf,ids = TextClassifier(no_drop(), 2, bptt=8, head_p=(0,0)),pad(ts)
    opt,loss = torch.optim.Adam(clf.parameters(), 1e-2),classifier_loss('single', .05)
    for i in range(100):
        opt.param_groups[0]['lr'] = 1e-2*(1-i/100)
        opt.zero_grad()
        loss(clf(ids), y).backward()
        opt.step()
    assert (clf.eval()(ids).argmax(1)==y).float().mean()>.95

def test_sizes_of_the_paper():
    "Worked numbers: head of 60,152 and 2,500 parameters on 3 x 400 features; five groups"
    clf = TextClassifier(AWDLSTM(10, emb_sz=400, n_hid=1150, n_layers=3), 2)
    def count(kind): return sum(p.numel() for m in clf.head if isinstance(m, kind) for p in m.parameters())
    assert (count(nn.Linear),count(nn.BatchNorm1d))==(60152,2500)
    assert sum(p.numel() for p in clf.encoder.layers.parameters())==20211600
    assert [sum(p.numel() for p in g) for g in clf.groups()]==[4000,7139200,10589200,2483200,62652]

def test_regression_and_several_labels():
    clf = TextClassifier(encoder(), 1, y_range=(0,5)).eval()
    out = clf(pad(texts([4,9])))
    assert out.shape==(2,1) and 0<=out.min() and out.max()<=5
    assert TextClassifier(clf.encoder, **clf.config).config==clf.config
    assert classifier_loss('regression')(out, torch.tensor([1.,2.])).shape==()
    ml = classifier_loss('multi', .1)
    z,y = torch.randn(2,3),torch.tensor([[1,0,1],[0,0,1]])
    want = nn.functional.binary_cross_entropy_with_logits(z, y*.9+.05)
    torch.testing.assert_close(ml(z, y), want)
    ml.reduction = 'none'
    assert ml(z, y).shape==(2,3)
    assert ml.decodes(ml.activation(torch.tensor([[3.,-3]]))).tolist()==[[True,False]]

def test_class_weights_move_with_the_prediction():
    l = classifier_loss('single', weight=[1,3])
    z,y = torch.randn(4,2),torch.tensor([0,1,1,0])
    torch.testing.assert_close(l(z, y), nn.functional.cross_entropy(z, y, torch.tensor([1.,3])))
    with pytest.raises(ValueError, match='share from 0'): classifier_loss(smoothing=1.)

@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_reversal(lens, extra):
    ts = texts(lens)
    assert torch.equal(reverse_texts(pad(ts, extra)), pad([t.flip(0) for t in ts], extra))
    assert doc_lengths(pad(ts, extra)).tolist()==lens

@pytest.mark.parametrize('kind', ['single','multi','regression'])
def test_ensemble_is_the_mean_after_the_activation(kind):
    seed_everything()
    f,b = (TextClassifier(encoder(), 3, bptt=5).eval() for _ in range(2))
    ids,act = pad(texts([8,3])),classifier_loss(kind).activation
    with torch.no_grad():
        got = act(BiClassifier(f, b, kind)(ids))
        torch.testing.assert_close(got, (act(f(ids))+act(b(reverse_texts(ids))))/2, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match='cannot average'): ensemble_probs([torch.ones(1,2), torch.ones(1,3)])

def test_random_chunk_length_only_in_training():
    seed_everything()
    doc,t = DocumentEncoder(no_drop(), bptt=30, max_len=30, rand_bptt=True),texts([200])[0][None]
    with torch.no_grad():
        assert len({doc.train().states(t).h.shape[1] for _ in range(10)})>3
        assert {doc.eval().states(t).h.shape[1] for _ in range(5)}=={20}
    o = torch.tensor([draw_bptt(70) for _ in range(5000)]).float()
    assert abs(o.mean()-.95*70-.05*35)<1 and o.min()>=5

_mem = """
import resource,sys,torch
from ulmfit_t5.models.awd_lstm import AWDLSTM
from ulmfit_t5.models.heads import TextClassifier
clf = TextClassifier(AWDLSTM(40, emb_sz=64, n_hid=128, n_layers=2), 2, bptt=70, max_len=280, pool_all=True)
def run(n): clf(torch.randint(9, 40, (2,n))).sum().backward()
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024
run(1000)
a = peak()
run(100_000)
print(peak()-a)
"""
def test_memory_is_flat_with_document_length():
    "Training on a document a hundred times longer takes at most 30 MB more; its states alone would be 100 MB"
    out = subprocess.run([sys.executable,'-c',_mem], capture_output=True, text=True, check=True).stdout
    assert float(out)<30, f'{out} MB more'

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 9), st.integers(0, 64))
def test_every_token_is_read_once_and_in_order(lens, bptt, most):
    "Whatever the size of a chunk and however many are joined, a row's chunks put end to end are its text"
    lens = torch.tensor(sorted(lens, reverse=True))
    ids = torch.stack([torch.where(torch.arange(lens[0])<n, 100*(i+1)+torch.arange(lens[0]), 1) for i,n in enumerate(lens)])
    got,calls = [[] for _ in lens],0
    for c in chunk_grid(ids, lens, bptt, 10**6, 1, most):
        calls += 1
        assert c.ids.shape[1]<=max(bptt, -(-most//len(c.ids)))
        for i,(r,m) in enumerate(zip(c.ids, c.mask)): got[i] += r[m].tolist()
    assert got==[ids[i,:n].tolist() for i,n in enumerate(lens)]
    assert calls<=-(-int(lens[0])//bptt)

def test_joined_chunks_give_the_same_vectors():
    "Texts that fit into the window are cut where they begin; those of the plain grid are the same"
    seed_everything()
    t,enc = pad(texts([23,22,7,1])),no_drop()
    a,b = (DocumentEncoder(enc, bptt=6, max_len=m, bptc=c).eval() for m,c in ((1000,'window'),(1000,'detached')))
    torch.testing.assert_close(a(t), b(t), atol=1e-6, rtol=1e-5)
