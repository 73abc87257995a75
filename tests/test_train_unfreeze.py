"Groups and unfreezing schedules on real Learners: what is frozen does not move by a bit, rates are those that were announced"
import json,math
from functools import partial
import numpy as np,pytest,torch
from fastai.basics import Callback,Learner,OptimWrapper
from fastai.data.core import DataLoaders
from fastai.optimizer import Adam,SGD
from fastai.text.models.core import get_language_model,get_text_classifier
from fastai.text.models.awdlstm import AWD_LSTM,awd_lstm_clas_config,awd_lstm_clas_split,awd_lstm_lm_config,awd_lstm_lm_split
from hypothesis import given,settings,strategies as st
from torch import nn
from torch.utils.data import DataLoader,TensorDataset
from ulmfit_t5.models.awd_lstm import AWDLSTM,LanguageModel
from ulmfit_t5.models.heads import TextClassifier
from ulmfit_t5.train.groups import *
from ulmfit_t5.train.optimizers import FusedAdam
from ulmfit_t5.train.resume import Resumable
from ulmfit_t5.train.schedules import *
from ulmfit_t5.train.unfreeze import *

U,SPE = UnfreezeSchedule,6

class Net(nn.Module):
    "Five groups; two have a BatchNorm, one of them without weights"
    def __init__(self):
        super().__init__()
        block = lambda affine: nn.Sequential(nn.Linear(6,6), nn.BatchNorm1d(6, affine=affine), nn.ReLU())
        self.embed,self.l1,self.l2,self.l3,self.head = nn.Linear(3,6),block(True),block(False),nn.Linear(6,6),nn.Linear(6,2)
    def forward(self, x): return self.head(self.l3(self.l2(self.l1(self.embed(x)))))
    def parts(self): return self.embed,self.l1,self.l2,self.l3,self.head
    def groups(self): return [list(o.parameters()) for o in self.parts()]

def learner(opt_func=Adam, splitter=group_splitter, cbs=None, **kwargs):
    torch.manual_seed(0)
    ds = TensorDataset(torch.randn(4*SPE,3), torch.randint(0, 2, (4*SPE,)))
    dls = DataLoaders(DataLoader(ds, batch_size=4), DataLoader(ds, batch_size=12))
    return Learner(dls, Net(), loss_func=nn.CrossEntropyLoss(), opt_func=opt_func, splitter=splitter, cbs=cbs, **kwargs)

def train(learn, sched, **kwargs):
    with learn.no_bar(), learn.no_logging(): learn.fit_unfreeze(sched, **kwargs)
    return learn

class Watch(Callback):
    "After each step: what moved, what had a gradient, and the hyper-parameters"
    order = 70
    def _now(self): return [{k:v.clone() for k,v in o.state_dict().items()} for o in self.model.parts()]
    def before_fit(self): self.last,self.moved,self.grads,self.hypers,self.leaves = self._now(),[],[],[],[]
    def after_loss(self):
        if self.training: self.leaves.append(leaves(self.learn.loss_grad))
    def after_backward(self): self.grads.append([any(p.grad is not None for p in o.parameters()) for o in self.model.parts()])
    def after_batch(self):
        if not self.training: return
        now,self.hypers = self._now(),self.hypers+[[dict(h) for h in self.opt.hypers]]
        self.moved.append([any(not a[k].equal(b[k]) for k in a) for a,b in zip(now, self.last)])
        self.last = now

def leaves(loss):
    "Parameters that back-propagation from `loss` would reach"
    seen,todo,res = set(),[loss.grad_fn],set()
    while todo:
        f = todo.pop()
        if f is None or f in seen: continue
        seen.add(f)
        if hasattr(f, 'variable'): res.add(id(f.variable))
        todo += [o for o,_ in f.next_functions]
    return res

RECIPES = dict(gradual=U.gradual(5, final_epochs=2), one_curve=U.gradual(5, restart=False, schedule='cosine'), chain=U.chain_thaw(5, final_epochs=1),
    up=U.chain_thaw(5, final_epochs=1, upwards=True), last=U.last_only(5, 2), full=U.full(5, 2), scripts=U.two_step(epochs=2), course=U.fastai_imdb(),
    course_lm=U.fastai_imdb_lm(5, 1, head=(0,-1)), parts=U.gradual(5, .5, 1.7, schedule='linear', warmup=.1),
    repeat=U(5, [Stage((1,3), 1, wd=.5), Stage(1, 1), Stage((0,2), 1, moms=.5)]))

@pytest.mark.parametrize('name', RECIPES)
def test_rates_and_freezing_step_by_step(name):
    u,watch = RECIPES[name],Watch()
    learn = train(learner(cbs=watch), u)
    rates,moms,steps = u.rates(SPE),u.moms(SPE),[s.n_steps(SPE) for s in u.stages]
    is_open = np.concatenate([np.tile(np.isin(range(5), s.groups(5)), (n,1)) for s,n in zip(u.stages, steps)])
    assert np.array_equal(np.array([[h['lr'] for h in hs] for hs in watch.hypers]), rates) and np.array_equal(learn.group_rates, rates)
    assert np.array_equal((rates>0), is_open & (rates>0).any(1, keepdims=True)) and np.array_equal(np.array(watch.grads), is_open)
    assert not (np.array(watch.moved) & ~is_open).any(), 'a frozen group moved'
    assert (np.array(watch.moved) | ~is_open)[rates.max(1)>0].all(), 'an open group stood still'
    seen = np.array([h[0]['mom'] for h in watch.hypers])
    assert np.allclose(seen, np.where(np.isnan(moms), Adam([torch.ones(1)], lr=1).hypers[0]['mom'], moms))

def test_backward_stops_at_the_lowest_open_group():
    watch = Watch()
    learn = train(learner(cbs=watch), U.gradual(5, final_epochs=1))
    for k in range(5):
        want = {id(p) for g in group_splitter(learn.model)[4-k:] for p in g}
        assert watch.leaves[k*SPE]==want

def test_weight_decay_of_stages():
    watch = Watch()
    train(learner(cbs=watch), RECIPES['repeat'], wd=.25)
    assert [watch.hypers[i*SPE][0]['wd'] for i in range(3)]==[.5,.25,.25]

@pytest.mark.parametrize('opt', [partial(OptimWrapper, opt=torch.optim.AdamW), partial(SGD, mom=.9), FusedAdam], ids=['torch','sgd','fused'])
def test_other_optimisers(opt):
    watch,u = Watch(),RECIPES['chain']
    learn = train(learner(opt, cbs=watch), u)
    assert np.allclose(learn.group_rates, u.rates(SPE)) and np.array_equal(np.array(watch.moved), u.rates(SPE)>0)

@pytest.mark.parametrize('keep', [True,False])
def test_optimiser_state_between_stages(keep):
    class CountSteps(Callback):
        order = 70
        def before_fit(self): self.n = []
        def after_batch(self):
            if self.training: self.n.append(self.opt.state[self.model.head.weight]['step'])
    cb = CountSteps()
    train(learner(cbs=cb), U.gradual(5, final_epochs=1), keep_state=keep)
    assert cb.n==(list(range(1, 5*SPE+1)) if keep else list(range(1, SPE+1))*5)

@pytest.mark.parametrize('stop', [4, SPE, SPE+1, 3*SPE-1, 4*SPE+3])
def test_a_killed_training_resumes_to_the_same_bits(stop, tmp_path):
    class Kill(Callback):
        order = 96
        def after_batch(self):
            if self.training and self.train_iter>=stop: raise KeyboardInterrupt
    u,cb = U.gradual(5, final_epochs=1, moms=(.9,.8,.9)),lambda: Resumable(tmp_path, every_steps=1, say=None)
    whole = train(learner(), u)
    with pytest.raises(KeyboardInterrupt): train(learner(), u, cbs=[cb(),Kill()])
    again = train(learner(), u, cbs=cb())
    for (k,a),b in zip(whole.model.state_dict().items(), again.model.state_dict().values()): assert a.equal(b), k
    assert np.array_equal(again.group_rates, whole.group_rates)

def test_start_epoch_goes_on_in_the_right_stage():
    u = U.gradual(5, final_epochs=1)
    assert np.array_equal(train(learner(), u, start_epoch=3).group_rates, u.rates(SPE)[3*SPE:])

def test_same_as_typing_it_by_hand():
    "Two stages against fastai's own cells"
    u,a,b = U(5, [Stage(1, 1, schedule='one_cycle'), Stage(2, 2, lr=.005, schedule='one_cycle')]),learner(),learner()
    for m in (*a.model.modules(),*b.model.modules()): m.track_running_stats = False
    for m in (a,b):
        m.train_bn = False
        for bn in (m.model.l1[1],m.model.l2[1]): bn.eval = lambda s=bn: s
    train(a, u)
    with b.no_bar(), b.no_logging():
        for k,e,lr in ((-1,1,.01),(-2,2,.005)):
            b.freeze_to(k)
            b.fit_one_cycle(e, discriminative(lr, 5), moms=(.9,.9,.9))
    for p,q in zip(a.model.parameters(), b.model.parameters()): assert torch.allclose(p, q, atol=1e-6)

@pytest.mark.parametrize('make,says', [(lambda: learner(splitter=lambda m: [list(m.parameters())]), 'for 5 parameter groups and the Learner has 1'),
    (lambda: learner(splitter=lambda m: [*m.groups()[:4], [m.head.weight]]), 'head.bias is in no group'),
    (lambda: learner(splitter=lambda m: [*m.groups()[:4], [*m.head.parameters(),m.embed.bias]]), 'embed.bias is in more than one group')])
def test_wrong_groups_are_refused(make, says):
    with pytest.raises(ValueError, match=says): train(make(), U.gradual(5))

def test_our_models_have_their_groups():
    torch.manual_seed(0)
    clas = TextClassifier(AWDLSTM(50, emb_sz=8, n_hid=12), 2)
    gs = Groups(clas)
    assert len(gs)==5 and sum(gs.counts)==count_params(clas) and 'head' in gs.names[-1] and 'embed' in gs.names[0]
    lm = LanguageModel(AWDLSTM(50, emb_sz=8, n_hid=12))
    gs = Groups(lm)
    assert sum(gs.counts)==count_params(lm)==sum(p.numel() for p in set(lm.parameters()))

def test_fastai_models_have_their_groups():
    small = dict(emb_sz=8, n_hid=12, n_layers=3)
    for m,split,n in ((get_language_model(AWD_LSTM, 30, config=dict(awd_lstm_lm_config, **small)), awd_lstm_lm_split, 4),
        (get_text_classifier(AWD_LSTM, 30, 2, config=dict(awd_lstm_clas_config, **small)), awd_lstm_clas_split, 5)):
        gs = Groups(m, split)
        assert len(gs)==n and sum(gs.counts)==count_params(m)
        assert count_params(m)==sum(p.numel() for p in {p.data_ptr():p for p in m.parameters()}.values())

@given(st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_open_groups_opens_just_those(idxs):
    m = Net()
    n = open_groups(m.groups(), idxs)
    assert [all(p.requires_grad for p in g) for g in m.groups()]==[i in idxs for i in range(5)]
    assert n==count_params(m, trainable=True)

@given(st.floats(1e-6, 1), st.integers(1, 12), st.floats(1, 10))
def test_discriminative_ladder(lr, n, f):
    r = discriminative(lr, n, f)
    assert r[-1]==pytest.approx(lr) and (n==1 or np.allclose(r[1:]/r[:-1], f))

@pytest.mark.parametrize('f,says', [(lambda: discriminative([.1]*3, 5), '3 rates for 5'), (lambda: discriminative(.1, 5, 'script'), '4 rates for 5'),
    (lambda: discriminative(.1, 3, 'paper?'), 'choose one of paper'), (lambda: discriminative(.1, 3, -1), "the paper's 2.6"),
    (lambda: discriminative([1,-1], 2), 'not negative'), (lambda: discriminative(math.nan, 2), 'finite'), (lambda: U(5, []), 'at least one stage'),
    (lambda: Stage(lr=0), 'must be above 0'), (lambda: Stage(open=2.5), 'open is 2.5'), (lambda: Stage(epochs=math.inf), 'does not train'),
    (lambda: U(3, [Stage((0,3))]), 'of 3 groups'), (lambda: U(2, [Stage(1), Stage(2, schedule='cosine')], restart=False), 'needs one schedule'),
    (lambda: U.from_dict(dict(n_groups=1, stages=[dict(opne=1)])), 'opne is nothing'), (lambda: U.gradual(5, slope=3), 'do not fit')])
def test_errors_are_sentences(f, says):
    with pytest.raises(ValueError, match=says): f()

stages = st.builds(Stage, open=st.one_of(st.just('all'), st.integers(1, 4), st.lists(st.integers(-4, 3), min_size=1, max_size=4)), epochs=st.floats(.05, 20),
    lr=st.one_of(st.floats(1e-5, 1), st.lists(st.floats(1e-5, 1), min_size=4, max_size=4)), factor=st.sampled_from((None,2.6,'script',(1,.5,.25,.1))),
    schedule=st.sampled_from(('stlr','one_cycle','cosine','constant')), kwargs=st.sampled_from(({},dict(warmup=.2))),
    moms=st.sampled_from((None,.7,(.95,.85,.95))), wd=st.sampled_from((None,.1)))
scheds = st.builds(lambda ss: U(4, ss), st.lists(stages, min_size=1, max_size=5))

@settings(max_examples=60, deadline=None)
@given(scheds, st.integers(1, 30))
def test_any_schedule_holds_together(u, spe):
    r = u.rates(spe)
    assert r.shape==(sum(s.n_steps(spe) for s in u.stages),4) and np.isfinite(r).all() and r.min()>=0 and len(u.moms(spe))==len(r)
    assert U.from_dict(json.loads(json.dumps(u.to_dict())))==u
    assert len(str(u).splitlines())==len(u.stages)+2 and u._repr_html_().count('<tr>')==len(u.stages)+1

@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.integers(1, 50), st.floats(.1, 9)), min_size=1, max_size=6), st.floats(.01, 1.5))
def test_scaled_keeps_to_its_budget(eps, f):
    u = U(5, [Stage('all', e) for e in eps])
    v = u.scaled(f)
    new = [s.epochs for s in v.stages]
    assert sum(new)<=u.epochs*min(f, 1)+1e-6 and all(0<b<=a for a,b in zip(eps, new)) and len(v.cuts)==sum(b<a for a,b in zip(eps, new))
    if f<1 and all(float(e).is_integer() for e in eps) and u.epochs*f>=len(eps): assert all(float(e).is_integer() for e in new) and sum(new)>u.epochs*f-len(eps)
    assert v.n_groups==5 and (f<1 or v==u)

@pytest.mark.parametrize('table', ABLATIONS)
def test_every_row_of_the_ablations_trains(table):
    for row in ABLATIONS[table]:
        u = ablation(row, table, n_groups=5, epochs=6)
        if u is not None: assert u.epochs==6 and np.isfinite(train(learner(), u).group_rates).all()

def test_rates_of_the_ablation_rows():
    top = {row:ablation(row).rates(50).max(0)[[0,-1]] for row in ABLATIONS[7]}
    for row in ('full','from scratch','freez','freez + stlr'): assert np.allclose(top[row], .001)
    for row in ('full + discr','freez + discr','freez + discr + stlr'): assert np.allclose(top[row], [.01/2.6**4,.01])
    assert np.allclose(top['chain-thaw'], [1e-4,1e-3]) and np.allclose(top['last only'], [0,.001])
    assert np.allclose(ablation('full + discr + stlr', 6).rates(50).max(0)[[0,-1]], [.004/2.6**4,.004])
    assert ablation('last')==ablation('last only') and ablation('freez+discr')==ablation('freez + discr')

def test_picture_shows_every_frozen_block():
    plt = pytest.importorskip('matplotlib.pyplot')
    for u in RECIPES.values():
        ax = u.plot(steps_per_epoch=10)
        assert len(ax.patches)==sum(5-len(s.groups(5)) for s in u.stages) and ax.images[0].get_array().shape==u.rates(10).T.shape
        plt.close(ax.figure)
