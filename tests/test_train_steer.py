"Steering on real Learners: what is commanded happens at its step, what is not commanded changes no bit, and nothing is left behind"
import os,signal,threading,time
from functools import partial
from types import SimpleNamespace
import pytest,torch
from fastai.basics import Callback,Learner,OptimWrapper
from fastai.data.core import DataLoaders
from fastai.optimizer import Adam
from hypothesis import given,settings,strategies as st
from torch import nn
from torch.utils.data import DataLoader,TensorDataset
from ulmfit_t5.models.awd_lstm import AWDLSTM,LanguageModel,LMLoss
from ulmfit_t5.models.t5 import T5,T5Config,T5Loss
from ulmfit_t5.train.callbacks import TimeBudget
from ulmfit_t5.train.groups import group_splitter
from ulmfit_t5.train.optimizers import FusedAdam
from ulmfit_t5.train.resume import Resumable
from ulmfit_t5.train.steer import *
from ulmfit_t5.train.steered import *
from ulmfit_t5.train.unfreeze import UnfreezeSchedule

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a,self.norm,self.b,self.c = nn.Linear(3, 6),nn.BatchNorm1d(6),nn.Linear(6, 6),nn.Linear(6, 2)
    def forward(self, x): return self.c(self.b(self.norm(self.a(x)).relu()).relu())
    def groups(self): return [[*self.a.parameters(), *self.norm.parameters()], list(self.b.parameters()), list(self.c.parameters())]

def learner(opt_func=Adam, model=None, n=24, **kwargs):
    torch.manual_seed(0)
    ds = TensorDataset(torch.randn(n, 3), torch.randint(0, 2, (n,)))
    dls = DataLoaders(DataLoader(ds, batch_size=4, shuffle=True), DataLoader(ds, batch_size=12))
    learn = Learner(dls, model or Net(), loss_func=nn.CrossEntropyLoss(), opt_func=opt_func, splitter=group_splitter, lr=.01, **kwargs)
    return quiet(learn)

def quiet(learn):
    learn.logger = lambda *_: None
    learn.remove_cbs([o for o in learn.cbs if o.name=='progress'])
    return learn

def state(learn): return {k:v.clone() for k,v in learn.model.state_dict().items()}
def same(a, b): return all(a[k].equal(b[k]) for k in a)

class Watch(Callback):
    "The rates of each step and which groups it moved"
    order = 71
    def before_fit(self): self.rates,self.moved,self.last = [],[],self._now()
    def _now(self): return [[p.detach().clone() for p in g] for g in self.opt.param_lists]
    def after_step(self):
        now = self._now()
        self.rates.append([h['lr'] for h in self.opt.hypers])
        self.moved.append([any(not a.equal(b) for a,b in zip(*o)) for o in zip(now, self.last)])
        self.last = now

PLAN = UnfreezeSchedule.gradual(3, final_epochs=2, moms=(.9,.8,.9))
FITS = dict(plain=lambda l, **kw: l.fit(3, **kw), one_cycle=lambda l, **kw: l.fit_one_cycle(3, .1, **kw), unfreeze=lambda l, **kw: l.fit_unfreeze(PLAN, **kw),
    fine_tune=lambda l, **kw: l.fine_tune(2, **kw))
OPTS = dict(adam=Adam, fused=FusedAdam, torch=partial(OptimWrapper, opt=torch.optim.AdamW))

@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('opt', OPTS)
def test_nothing_commanded_changes_no_bit(fit, opt):
    a,b,c = (learner(OPTS[opt]) for _ in range(3))
    steering(b)
    steering(c).send('freeze', group=0)
    steering(c).send('release')
    for o in (a,b,c):
        torch.manual_seed(1)
        FITS[fit](o)
    assert same(state(a), state(b)) and same(state(a), state(c))
    assert [h['lr'] for h in a.opt.hypers]==[h['lr'] for h in c.opt.hypers]

@pytest.mark.parametrize('fit', FITS)
@pytest.mark.parametrize('opt', OPTS)
def test_freeze_and_rate_win_until_released(fit, opt):
    watch,learn = Watch(),learner(OPTS[opt], cbs=None)
    plain,ref = Watch(),learner(OPTS[opt])
    for at,name,kw in ((4,'freeze',dict(group=2)),(4,'set_rate',dict(group=1, lr=.5)),(9,'release',{})): steering(learn).send(name, at=at, **kw)
    torch.manual_seed(1)
    FITS[fit](learn, cbs=watch)
    torch.manual_seed(1)
    FITS[fit](ref, cbs=plain)
    off = {'fine_tune':6}.get(fit, 0) # the watch begins anew with the second fit
    rates = {i+off:o for i,o in enumerate(watch.rates)}
    want = {i+off:o for i,o in enumerate(plain.rates)}
    held = [i for i in rates if 4<=i<9]
    assert held and all(rates[i][2]==0 and rates[i][1]==.5 for i in held) and not any(watch.moved[i-off][2] for i in held)
    assert all(rates[i]==want[i] for i in rates if i not in held)
    assert all(watch.moved[i-off][2] for i in rates if i>=9)

def awd():
    model,ids = LanguageModel(AWDLSTM(40, emb_sz=8, n_hid=8, n_layers=2)),torch.randint(2, 40, (24, 7))
    return model,LMLoss(model),TensorDataset(ids[:,:-1], ids[:,1:]),1

def t5():
    model,ids = T5(T5Config(vocab_sz=40, d_model=8, d_kv=4, d_ff=16, n_layers=2, n_heads=2)),torch.randint(2, 40, (24, 6))
    return model,T5Loss(model),TensorDataset(ids, ids, ids),2

def test_order_of_commands_from_many_threads():
    learn = learner()
    s = steering(learn)
    def flood(k):
        for i in range(50): s.send('set_rate', group=k%3, lr=1e-4*(1+k+10*i))
    ts = [threading.Thread(target=flood, args=(k,)) for k in range(8)]
    run = learn.steer('fit', 200)
    for t in ts: t.start()
    for t in ts: t.join()
    s.send('stop').wait(60)
    run.wait(60)
    for k in range(8):
        mine = [round(o['args']['lr']/1e-4)-1 for o in s.log if o['command']=='set_rate' and (round(o['args']['lr']/1e-4)-1-k)%10==0]
        assert mine==[k+10*i for i in range(50)]

def test_a_command_is_applied_within_a_batch():
    class Slow(Net):
        def forward(self, x):
            time.sleep(.05)
            return super().forward(x)
    learn = learner(model=Slow())
    s,run = steering(learn),learn.steer('fit', 50)
    while s.steps_done<2: time.sleep(.01)
    t,at = s.send('freeze', group=0),s.steps_done # read after it was sent, so that no step lies between
    assert t.wait(60)<=at+1
    run.stop()
    run.wait(60)
    assert not s.running and not any(o.name=='steered training' for o in threading.enumerate())

class InValidation(Callback):
    "Gives commands during the first batch of the first validation, and notes what the second one finds"
    def __init__(self, *what): self.what,self.seen = what,None
    def after_batch(self):
        if self.training or self.epoch or self.iter: return
        for name,kw in self.what: self.steering.send(name, **kw)
    def after_pred(self):
        if not self.training and not self.epoch and self.iter==1: self.seen = self.steering.held(),self.steering.waited

def test_a_wish_in_a_validation_is_held_at_once_and_trains_as_from_the_next_step():
    what = ('freeze',dict(group=0)),('set_rate',dict(group=1, lr=.3)),('set_factor',dict(factor=2.)),('thaw',dict(group=2))
    a,b,heard = learner(),learner(),InValidation(*what)
    steering(a)
    for name,kw in what: steering(b).send(name, at=6, **kw)
    for o,cbs in ((a,[heard]),(b,[])):
        torch.manual_seed(1)
        o.fit_one_cycle(3, .1, cbs=cbs)
    assert heard.seen[0]==dict(opens={0:False, 2:True}, lrs={1:.3}, factor=2.)
    assert same(state(a), state(b)) and [o['step'] for o in steering(a).log]==[6]*4==[o['step'] for o in steering(b).log]

def test_a_pause_in_a_validation_holds_its_next_batch():
    learn,heard = learner(),InValidation(('pause',dict(seconds=.05)))
    s = steering(learn)
    learn.fit(1, cbs=heard)
    assert heard.seen[1]>=.05 and s.steps_done==6

def test_a_wish_does_not_overtake_a_point_that_waits_for_the_end_of_a_validation():
    learn,heard = learner(),InValidation(('save',dict(name='p')),('set_rate',dict(group=1, lr=.3)))
    s = steering(learn)
    learn.fit(2, cbs=heard)
    assert heard.seen[0]['lrs']=={} and s.points['p']['held']['lrs']=={} and s.lrs=={1:.3}

RECIPES = dict(fine_tune=lambda l: l.fine_tune(1, freeze_epochs=2), gradual=lambda l: l.fit_unfreeze(PLAN), one_cycle=lambda l: l.fit_one_cycle(2),
    in_a_thread=lambda l: l.steer('fine_tune', 2).wait(60), ours=lambda l: l.steer(lambda: [l.fit(1) for _ in range(3)]).wait(60))

@pytest.mark.parametrize('end', ['stop','stop_epoch'])
@pytest.mark.parametrize('how', RECIPES)
def test_a_stop_ends_all_fits_of_the_call(how, end):
    learn,n = learner(),2 if end=='stop' else 6
    s = steering(learn)
    s.send(end, at=2)
    RECIPES[how](learn)
    assert (s.steps_done,s.halted)==(n,True)
    learn.fine_tune(1)
    assert (s.steps_done,s.halted)==(n+12,False), 'the next call is not to be stopped'

def test_a_stop_ends_one_fit_of_a_loop_of_the_user():
    learn = learner()
    s = steering(learn)
    s.send('stop', at=2)
    for _ in range(2): learn.fit(1)
    assert s.steps_done==8

def test_rollback_gives_weights_moments_and_holds_back_and_keeps_the_point():
    learn = learner()
    s = steering(learn)
    learn.fit(1)
    s.send('freeze', group=0)
    s.send('save', name='p')
    saved,moments = state(learn),[{k:v.clone() for k,v in learn.opt.state[p].items() if torch.is_tensor(v)} for p in learn.model.parameters()]
    s.send('release')
    for _ in range(2):
        learn.fit(2)
        assert not same(saved, state(learn))
        s.send('rollback', name='p').wait()
        now = [{k:v for k,v in learn.opt.state[p].items() if torch.is_tensor(v)} for p in learn.model.parameters()]
        assert same(saved, state(learn)) and all(same(a, b) for a,b in zip(moments, now)) and s.opens=={0:False}
        s.send('release')

def test_points_on_disk_outlive_the_learner(tmp_path):
    a,b = learner(),learner()
    steering(a, folder=tmp_path).send('save', name='p', at=3)
    torch.manual_seed(5)
    a.fit(1)
    steering(b, folder=tmp_path).send('rollback', name='p').wait()
    c = learner()
    steering(c).send('stop', at=3)
    torch.manual_seed(5)
    c.fit(1)
    assert same(state(b), state(c))
    assert 'plain word' in str(steering(a).send('save', name='../p').error)

def test_the_oldest_point_goes_when_there_are_too_many():
    s = steering(learner(), keep=2)
    for k in 'abca': s.send('save', name=k)
    assert list(s.points)==['c','a']

def test_reset_is_the_start_and_forgets_the_moments():
    learn = learner()
    start,s = state(learn),steering(learn)
    learn.fit(2)
    s.send('reset', group=1).wait()
    now = state(learn)
    assert all(now[k].equal(start[k])==k.startswith('b.') for k,_ in learn.model.named_parameters())
    assert not any('grad_avg' in learn.opt.state[p] for p in learn.model.b.parameters())

BAD = [('freeze',dict(group=3),IndexError),('freeze',dict(group=True),IndexError),('set_rate',dict(group=0, lr=0),ValueError),('set_rate',dict(group=0, lr='x'),ValueError),
    ('set_rate',dict(group=0, lr=float('nan')),ValueError),('set_factor',dict(factor=-1),ValueError),('rollback',dict(name='no'),KeyError),('step',dict(n=0),ValueError)]

@pytest.mark.parametrize('name,kw,err', BAD, ids=lambda o: str(o)[:30])
def test_a_bad_command_harms_nothing(name, kw, err):
    a,b = learner(),learner()
    t = steering(a).send(name, at=2, **kw)
    for o in (a,b):
        torch.manual_seed(1)
        o.fit(1)
    assert same(state(a), state(b)) and isinstance(t.error, err) and steering(a).log==[]
    with pytest.raises(err): t.wait()

def test_interrupted_while_paused():
    learn = learner()
    s = steering(learn)
    s.send('pause', at=2)
    s.send('freeze', group=0, at=1)
    def interrupt():
        while not s.paused: time.sleep(.01)
        time.sleep(.1)
        os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=interrupt).start()
    with pytest.raises(KeyboardInterrupt): learn.fit(2)
    assert not s.running and s.steps_done==2
    learn.fit(1)
    assert s.steps_done==8 and all(p.requires_grad for p in learn.model.parameters())

@pytest.mark.parametrize('counted', [True,False])
def test_a_pause_is_not_of_the_time_budget(monkeypatch, counted):
    "By a clock of our own: batches take .05 s, the pause 1.5 s; if it were counted, the fit would be cut"
    now,learn = [0.],learner()
    class Move(Callback):
        order = -20
        def after_batch(self): now[0] += .05
    class Sleepless(threading.Condition):
        def wait(self, timeout=None): now[0] += timeout
    for o in ('steer','commands'): monkeypatch.setattr(f'ulmfit_t5.train.{o}.time', SimpleNamespace(monotonic=lambda: now[0], time=time.time))
    if counted: monkeypatch.setattr(Steering, '_lost', lambda self, secs: setattr(self, 'waited', self.waited+secs))
    s,b = steering(learn),TimeBudget(1.2, say=None)
    s.cond,b.clock = Sleepless(),lambda: now[0]
    s.send('pause', seconds=1.5, at=1)
    learn.fit(2, cbs=[Move(),b])
    assert s.waited>=1.5 and (s.steps_done<12)==counted and (b.fits[0]['seconds']<1.2)!=counted

def test_a_killed_training_goes_on_with_what_was_held(tmp_path):
    class Kill(Callback):
        order = 96
        def after_batch(self):
            if self.training and self.train_iter>=5: raise KeyboardInterrupt
    def go(*cbs):
        learn = learner()
        for at,name,kw in ((2,'freeze',dict(group=0)),(3,'set_rate',dict(group=1, lr=.2))):
            if steering(learn).fit_no<0 and cbs!=('again',): steering(learn).send(name, at=at, **kw)
        torch.manual_seed(3)
        learn.fit_one_cycle(2, .05, cbs=[Resumable(tmp_path/str(len(cbs)), every_steps=1, say=None), *[o for o in cbs if o!='again']])
        return learn
    whole = go()
    with pytest.raises(KeyboardInterrupt): go(Kill())
    again = go('again')
    assert same(state(whole), state(again)) and steering(again).held()==steering(whole).held() and steering(again).steps_done==12

def test_neither_finding_a_rate_nor_validating_is_steered():
    learn = learner()
    s,before = steering(learn),state(learn)
    s.send('freeze', group=0, at=0)
    learn.lr_find(show_plot=False, num_it=8)
    learn.validate()
    assert same(before, state(learn)) and s.steps_done==0 and not s.log

def test_background_run_says_what_it_is_and_refuses_a_second(capsys):
    learn = learner()
    run = learn.steer('fit', 500)
    assert 'background' in repr(run)
    with pytest.raises(RuntimeError, match='already'): learn.steer('fit', 1)
    run.stop()
    run.wait(60)
    assert 'ended' in repr(run)
    with pytest.raises(ValueError, match='fit_unfreeze'): learn.steer('no_such_fit')
    bad = learn.steer(lambda: 1/0)
    bad.thread.join(60)
    assert 'ZeroDivisionError' in capsys.readouterr().err and not learn.steering.running

COMMANDS_ = st.lists(st.tuples(st.integers(0, 20), st.sampled_from(['freeze','thaw','release','reset','set_rate','save','rollback']), st.integers(0, 2)), max_size=12)

@settings(max_examples=15, deadline=None)
@given(COMMANDS_, st.sampled_from(['plain','one_cycle','unfreeze']))
def test_any_commands_leave_nothing_behind(cmds, fit):
    watch,learn = Watch(),learner()
    s = steering(learn)
    for at,name,g in sorted(cmds):
        kw = {} if name in ('save','rollback') else dict(group=g, lr=.05) if name=='set_rate' else dict(group=g)
        s.send(name, at=at, **kw)
    opens = {}
    class Hold(Callback):
        order = 72
        def after_step(self): opens[len(opens)] = dict(s.opens)
    FITS[fit](learn, cbs=[watch,Hold()])
    by_hand = {o['step'] for o in s.log if o['command'] in ('reset','rollback')}
    for i,o in opens.items():
        for g,on in o.items(): assert on or (watch.rates[i][g]==0 and (i in by_hand or not watch.moved[i][g]))
    assert all(p.requires_grad for p in learn.model.parameters()) and all(h['lr']!=0 or fit!='plain' for h in learn.opt.hypers)
    assert all(torch.isfinite(p).all() for p in learn.model.parameters())

@pytest.mark.parametrize('make', [awd,t5])
def test_every_group_of_our_models_freezes_and_opens(make):
    torch.manual_seed(0)
    model,loss,ds,n_inp = make()
    n,dls = len(model.groups()),DataLoaders(DataLoader(ds, batch_size=4), DataLoader(ds, batch_size=4))
    dls.n_inp = n_inp
    learn = quiet(Learner(dls, model, loss, splitter=group_splitter, lr=.01))
    s,watch = steering(learn),Watch()
    for g in range(n):
        s.send('freeze', group=g, at=g)
        s.send('release', group=g, at=g+1)
    learn.fit(-(-(n+1)//6), cbs=watch)
    for g in range(n): assert [o[g] for o in watch.moved[:n+1]]==[i!=g for i in range(n+1)]
