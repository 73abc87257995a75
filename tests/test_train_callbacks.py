"Callbacks on a tiny learner: what fastai does, what a NaN leaves behind, what a budget cuts"
import io,json,math,subprocess,sys
from types import SimpleNamespace
import pytest,torch
from torch import nn
from fastai.callback.core import Callback
from fastai.callback.progress import ProgressCallback
from fastai.callback.rnn import RNNCallback,RNNRegularizer
from fastai.callback.schedule import ParamScheduler,SchedCos
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import Adam
from ulmfit_t5.core import seed_everything
from ulmfit_t5.train.callbacks import *
from ulmfit_t5.train.optimizers import FusedAdam,FusedSGD,NTAvg

class Net(nn.Module):
    def __init__(self, listy=False):
        super().__init__()
        self.rnn,self.norm,self.drop,self.lin = nn.LSTM(3, 6, batch_first=True),nn.BatchNorm1d(6),nn.Dropout(.3),nn.Linear(6, 1)
        self.resets,self.last_out,self.listy = 0,None,listy
    def reset(self): self.resets += 1
    def forward(self, x):
        raw = self.rnn(x)[0]
        out = self.drop(self.norm(raw.transpose(1, 2)).transpose(1, 2))
        self.last_out = SimpleNamespace(raw=raw, out=out)
        return (self.lin(out),[raw],[out]) if self.listy else self.lin(out)

def make(seed=0, opt_func=FusedAdam, bad=None, listy=False, loss=nn.MSELoss(), n=48, **kw):
    seed_everything(seed)
    x = torch.randn(n, 5, 3)
    y = x.sum(-1, keepdim=True)
    xt,yt = x.clone(),y.clone()
    if bad: bad(xt, yt)
    dls = DataLoaders(DataLoader(list(zip(xt, yt)), bs=8), DataLoader(list(zip(x, y)), bs=24), device='cpu')
    learn = Learner(dls, Net(listy), loss, opt_func=opt_func, **kw)
    learn.remove_cbs(ProgressCallback)
    learn.logger = lambda *_: None
    return learn

def weights(learn): return torch.cat([t.detach().double().flatten() for t in learn.model.state_dict().values()])

def test_regularisation_is_fastais():
    "The same weights as RNNRegularizer gives from the same states, and a record without the terms"
    a = make(listy=True, cbs=[RNNCallback(), RNNRegularizer(2., 1.)])
    a.fit(2, 1e-2)
    b = make(cbs=ActivationReg(2., 1.))
    b.fit(2, 1e-2)
    assert torch.allclose(weights(a), weights(b), atol=1e-6)
    assert torch.allclose(torch.stack(a.recorder.losses), torch.stack(b.recorder.losses), atol=1e-6)
    c = make()
    c.fit(2, 1e-2)
    assert not torch.allclose(weights(b), weights(c), atol=1e-3)
    assert torch.equal(b.recorder.losses[0], c.recorder.losses[0])

def test_regularisation_needs_states():
    learn = make(cbs=ActivationReg())
    learn.model = nn.Linear(3, 1)
    with pytest.raises(AttributeError, match='Linear shows no states'): learn.fit(1)

def test_state_is_reset_where_it_must_be():
    learn,plain = make(cbs=ResetState),make()
    learn.fit(3)
    plain.fit(3)
    assert learn.model.resets-plain.model.resets==3*2+1

def _nan_targets(x, y): y[20] = torch.nan
def _inf_inputs(x, y): x[20] = torch.inf

@pytest.mark.parametrize('bad,why', [(_nan_targets,'the targets hold'),(_inf_inputs,'the input holds')])
def test_nan_guard_leaves_the_weights_before_the_step(bad, why):
    learn = make(bad=bad)
    with pytest.raises(NonFiniteError, match=why) as e: learn.fit(3, 1e-2, cbs=NaNGuard())
    assert str(e.value).startswith('training stopped in epoch 0, batch 2 of 6 (step 2): loss nan') and 'before that step' in str(e.value)
    good = make()
    good.dls.train.n = 16
    good.fit(1, 1e-2)
    got,want = learn.model.state_dict(),good.model.state_dict()
    assert all(torch.equal(got[k], want[k]) for k in got), 'running means of BatchNorm included'
    assert all(p.grad is None or p.grad.isfinite().all() for p in learn.model.parameters())

def test_without_the_guard_the_weights_are_lost():
    learn = make(bad=_nan_targets)
    learn.fit(1, 1e-2)
    assert not weights(learn).isfinite().all()

def test_nan_guard_and_a_rate_that_is_too_high():
    learn = make(opt_func=FusedSGD)
    with pytest.raises(NonFiniteError, match='the rate is too high, try 3e.37') as e: learn.fit(5, 3e38, cbs=[NaNGuard(every=2)])
    assert 'put back' in str(e.value) and weights(learn).isfinite().all()

def test_nan_guard_puts_moments_back_too():
    class Break(Callback):
        def after_step(self):
            if self.train_iter==3: self.model.lin.weight.data.fill_(torch.inf)
    learn = make()
    with pytest.raises(NonFiniteError, match='those after 2 steps were put back'): learn.fit(1, 1e-2, cbs=[NaNGuard(every=2), Break()])
    assert learn.opt.state[learn.model.lin.weight]['step']==2
    good = make()
    good.dls.train.n = 16
    good.fit(1, 1e-2)
    assert torch.equal(learn.model.lin.weight, good.model.lin.weight)

def test_nan_guard_says_when_the_start_is_bad():
    learn = make()
    learn.model.lin.weight.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match='not finite when this fit began'): learn.fit(1, cbs=NaNGuard())
    learn = make(loss=lambda p,y: (p-y).mean().log()*torch.inf)
    with pytest.raises(NonFiniteError, match='bad targets for this loss'): learn.fit(1, cbs=NaNGuard())

def test_nan_guard_changes_nothing_else():
    a,b = make(cbs=[NaNGuard(every=1), GradClip(1e9)]),None
    a.fit(2)
    b = make()
    b.fit(2)
    assert torch.equal(weights(a), weights(b))

@pytest.mark.parametrize('limit', [.01,1e9])
def test_clip_is_torchs(limit):
    class Torch(Callback):
        order,run_valid = 11,False
        def before_step(self): nn.utils.clip_grad_norm_(self.model.parameters(), limit)
    a = make(cbs=GradClip(limit))
    a.fit(2)
    b = make(cbs=Torch())
    b.fit(2)
    assert torch.allclose(weights(a), weights(b), atol=1e-7)

def test_bf16_keeps_weights_and_record_in_float32_and_leaves_no_trace():
    class See(Callback):
        order,seen = 99,set()
        def after_pred(self): self.seen.add((self.training,self.model.last_out.raw.dtype,self.learn.pred.dtype))
        def before_step(self):
            assert not torch.is_autocast_enabled('cpu')
            assert {p.grad.dtype for p in self.model.parameters()}=={torch.float32}
    learn = make().to_bf16_(force=True)
    learn.fit(2, cbs=See())
    assert See.seen=={(t,torch.bfloat16,torch.float32) for t in (True,False)}
    assert {t.dtype for s in learn.opt.state.values() for t in s.values() if isinstance(t, torch.Tensor)}=={torch.float32}
    assert learn.get_preds()[0].dtype==torch.float32 and '_do_one_batch' not in learn.__dict__

def test_bf16_does_not_leak_from_an_interrupted_batch():
    class Interrupt(Callback):
        def after_pred(self): raise KeyboardInterrupt
    learn = make()
    with pytest.raises(KeyboardInterrupt): learn.fit(1, cbs=[MixedBF16(force=True), Interrupt()])
    assert not torch.is_autocast_enabled('cpu')
    learn.fit(1)
    assert learn.model.last_out.raw.dtype==torch.float32

class Clock(Callback):
    order = -20
    def __init__(self, train, valid): self.train,self.valid,self.now = train,valid,0.
    def after_batch(self): self.now += self.train if self.training else self.valid

def budget_fit(budget, epochs, train=.1, valid=.05, cbs=(), **kw):
    clock,said = Clock(train, valid),[]
    tb = TimeBudget(budget, say=said.append, **kw)
    tb.clock = lambda: clock.now
    learn = make()
    learn.fit(epochs, cbs=[clock, ParamScheduler(dict(lr=SchedCos(1e-2, 1e-7))), tb, *cbs])
    return learn,tb,said

def test_budget_ends_in_time_with_a_validation_and_at_the_floor():
    learn,tb,said = budget_fit('2s', 100)
    assert tb.fits[0]['seconds']<=2+.1 and tb.fits[0]['cut'] and len(said)==2
    assert 'of 100 epochs' in said[0] and 'cut' in said[1]
    assert learn.recorder.hps['lr'][-1]<1e-2*.01
    assert all(len(o)==2 and not math.isnan(o[1]) for o in learn.recorder.values)

def test_budget_without_stretching_leaves_the_schedule():
    learn,_,_ = budget_fit('2s', 100, stretch=False)
    assert learn.recorder.hps['lr'][-1]>.9e-2

def test_budget_that_is_enough_says_nothing():
    learn,tb,said = budget_fit('1h', 2)
    assert said==[] and not tb.fits[0]['cut'] and tb.fits[0]['epochs']==2

def test_budget_is_for_each_fit_and_smaller_than_a_step_is_one_step():
    learn,tb,said = budget_fit(.01, 3)
    assert tb.fits[0]['steps']==1 and len(learn.recorder.values)==1
    learn.fit(1, cbs=tb)
    assert len(tb.fits)==2 and tb.fits[1]['steps']>=1
    with pytest.raises(ValueError, match="'3min'"): TimeBudget('soon')

def test_budget_goes_with_the_best_and_the_last_epoch(tmp_path):
    best,hist = SaveBest(tmp_path/'b'),History()
    learn,tb,_ = budget_fit('2s', 100, cbs=[best, hist])
    assert best.best==min(e['valid_loss'] for e in hist.epochs) and len(hist.steps['loss'])==tb.fits[0]['steps']
    assert abs(learn.validate()[0]-best.best)<1e-6

def test_early_stop_counts_from_the_best():
    class Worse(Callback):
        def after_train(self):
            if self.epoch>1: self.model.lin.bias.data += 10
    learn = make()
    learn.fit(30, 1e-3, cbs=[Worse(), EarlyStop(2)])
    assert len(learn.recorder.values)==4

def test_monitor_knows_its_columns(tmp_path):
    with pytest.raises(KeyError, match='no column'): make().fit(1, cbs=SaveBest(tmp_path/'b', 'acc'))
    assert Monitor('accuracy').minimize is False and Monitor('error_rate').minimize and Monitor('x', minimize=True).minimize

def test_perplexity_counts_tokens():
    "Batches of different length: the mean over rows is another number"
    learn = make()
    m = Perplexity()
    m.reset()
    losses,sizes = [1.,3.],[10,30]
    for l,s in zip(losses, sizes): m.accumulate(SimpleNamespace(loss=torch.tensor(l), yb=(torch.zeros(2, s//2, dtype=torch.long),)))
    assert abs(m.value-math.exp(100/40))<1e-9
    m = Perplexity(ignore=1)
    m.reset()
    m.accumulate(SimpleNamespace(loss=torch.tensor(2.), yb=(torch.tensor([[0,1,1]]),)))
    assert m.count==1 and abs(m.value-math.exp(2))<1e-9
    m.reset()
    assert m.value is None
    learn.metrics = [Perplexity()]
    learn.fit(1)
    assert abs(learn.recorder.values[0][2]-math.exp(learn.recorder.values[0][1]))<1e-4

def test_history_is_plain_and_complete(tmp_path):
    hist = History()
    learn = make(cbs=[hist, GradClip()], splitter=lambda m: [list(m.rnn.parameters()),[*m.norm.parameters(),*m.lin.parameters()]])
    learn.fit(2, slice(1e-4, 1e-2))
    learn.validate()
    learn.get_preds()
    d = json.loads(json.dumps(hist.to_dict()))
    assert {len(v) for v in d['steps'].values()}=={12} and len(d['epochs'])==2
    assert d['steps']['lr'][0]==pytest.approx([1e-4,1e-2]) and all(o>0 for o in d['steps']['grad_norm']) and hist.tokens_per_s>0
    hist.to_csv(tmp_path/'h.csv')
    assert len((tmp_path/'h.csv').read_text().splitlines())==13

def test_ntasgd_ends_with_the_mean_of_what_came_after():
    class Keep(Callback):
        order,run_valid = 60,False
        def before_fit(self): self.all = []
        def after_step(self): self.all.append([p.detach().clone() for p in self.model.parameters()])
    keep,avg = Keep(),NTAvg(n=0)
    learn = make(opt_func=FusedSGD)
    learn.fit(12, .3, cbs=[keep, avg])
    assert avg.t and avg.t%6==0
    for p,*ws in zip(learn.model.parameters(), *keep.all[-avg.t:]): assert torch.allclose(p, torch.stack(ws).mean(0), atol=1e-5)

def test_adam_is_fastais_in_a_learner():
    a,b = make(opt_func=FusedAdam, wd=.1),make(opt_func=Adam, wd=.1)
    seed_everything(1)
    a.fit_one_cycle(3, 1e-2)
    seed_everything(1)
    b.fit_one_cycle(3, 1e-2)
    assert torch.allclose(weights(a), weights(b), atol=1e-5)

def test_line_progress_writes_whole_lines_and_gives_back():
    out,learn = io.StringIO(),make()
    learn.add_cb(ProgressCallback())
    learn.logger = print
    learn.fit(2, cbs=LineProgress(every_s=0, out=out))
    lines = out.getvalue().splitlines()
    assert '\r' not in out.getvalue() and len(lines)==1+2*(6+2+1) and 'tokens/s' in lines[1] and 'epoch' in lines[0]
    assert learn.logger is print and learn.progress.run

def test_line_progress_on_a_terminal():
    class Tty(io.StringIO):
        def isatty(self): return True
    out,learn = Tty(),make()
    learn.logger = print
    learn.fit(1, cbs=LineProgress(every_s=0, out=out))
    assert out.getvalue().count('\n')==2 and out.getvalue().count('\r')>6

def test_fastais_bar_works_in_a_plain_process(tmp_path):
    "No notebook, no terminal: the bar must neither fail nor hide the table"
    code = "from test_train_callbacks import *\nl = make()\nl.add_cb(ProgressCallback())\nl.logger = print\nl.fit(2)"
    r = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=__file__.rsplit('/', 1)[0], timeout=200)
    assert r.returncode==0, r.stderr
    assert 'valid_loss' in r.stdout and 'Epoch 2/2' in r.stdout

def test_the_picture_of_a_history_hides_no_curve():
    "Rates are named by the modules of their groups, top first, and no legend covers an axis' inside"
    import matplotlib.pyplot as plt
    hist = History()
    make(splitter=lambda m: [list(m.rnn.parameters()),list(m.norm.parameters()),list(m.lin.parameters())], cbs=[hist]).fit_one_cycle(1, slice(1e-4, 1e-2))
    axs = hist.plot()
    axs[0].figure.canvas.draw()
    assert [o.get_text() for o in axs[1].get_legend().get_texts()]==['lin','norm','rnn']==hist.to_dict()['groups'][::-1]
    for ax in axs:
        inside,legend = ax.get_window_extent(),ax.get_legend().get_window_extent()
        assert legend.y0>=inside.y1-1 or legend.x0>=inside.x1-1
    again = History()
    again.load_resume_state(json.loads(json.dumps(hist.to_dict())))
    assert again.group_names==hist.group_names
    plt.close('all')
