"Killed trainings end with the same bits: SIGKILL, SIGTERM, optimizers, loaders, stages, torn and foreign checkpoints"
import json,os,random,signal,subprocess,sys
from functools import partial
from pathlib import Path
import pytest,torch
from torch import nn
from hypothesis import given,settings,strategies as st
from fastai.callback.core import Callback
from fastai.callback.training import GradientAccumulation
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from fastai.optimizer import Adam,OptimWrapper,SGD
from ulmfit_t5.core import seed_everything
from ulmfit_t5.train.callbacks import ActivationReg,EarlyStop,History,NaNGuard,ResetState,SaveBest,TimeBudget
from ulmfit_t5.train.optimizers import FusedSGD,NTAvg,adam_ulmfit
from ulmfit_t5.train.resume import Resumable,RunState
from ulmfit_t5.train.unfreeze import Stage,UnfreezeSchedule
from ulmfit_t5.train.state import load_state,pack,save_state,unpack

class Out(tuple):
    raw,dropped = property(lambda s: s[0]),property(lambda s: s[1])

class Net(nn.Module):
    "Recurrent, with dropout and BatchNorm; keeps a state from batch to batch"
    def __init__(self):
        super().__init__()
        self.rnn,self.norm,self.drop,self.out = nn.LSTM(3, 6, batch_first=True),nn.BatchNorm1d(6),nn.Dropout(.3),nn.Linear(6, 1)
        self.state = None
    def reset(self): self.state = None
    def forward(self, x):
        raw,s = self.rnn(x, self.state)
        self.state = [tuple(o.detach() for o in s)]
        self.state = self.state[0]
        return Out((raw, self.drop(self.norm(raw.transpose(1, 2)).transpose(1, 2))))
    def groups(self): return [list(self.rnn.parameters()),list(self.norm.parameters()),list(self.out.parameters())]

class OwnOrder:
    "A loader that knows its place"
    def __init__(self, ds, bs): self.ds,self.bs,self.epoch,self.i = ds,bs,0,0
    def __len__(self): return len(self.ds)//self.bs
    def __iter__(self):
        order = random.Random(self.epoch).sample(range(len(self.ds)), len(self.ds))
        while self.i<len(self):
            idx = order[self.i*self.bs:(self.i+1)*self.bs]
            self.i += 1
            yield tuple(torch.stack(o) for o in zip(*(self.ds[j] for j in idx)))
        self.epoch,self.i = self.epoch+1,0
    def state_dict(self): return dict(epoch=self.epoch, i=self.i)
    def load_state_dict(self, d): self.epoch,self.i = d['epoch'],d['i']

def _data():
    x = torch.randn(72, 5, 3, generator=torch.Generator().manual_seed(0))
    return list(zip(x, x.sum(-1, keepdim=True)))

def _loaders(kind):
    ds = _data()
    if kind=='fastai': return DataLoader(ds, bs=8, shuffle=True)
    if kind=='torch': return torch.utils.data.DataLoader(ds, batch_size=8, shuffle=True)
    return OwnOrder(ds, 8)

def make(seed=0, opt_func=adam_ulmfit, loader='fastai', cbs=()):
    seed_everything(seed)
    net = Net()
    loss = lambda p,y: (net.out(p.dropped)-y).pow(2).mean()
    dls = DataLoaders(_loaders(loader), DataLoader(_data(), bs=24), device='cpu')
    return Learner(dls, net, loss, opt_func=opt_func, splitter=Net.groups, cbs=list(cbs))

def weights(learn): return torch.cat([t.detach().double().flatten() for t in learn.model.state_dict().values()])

class Stop(Callback):
    "Ends everything at a step, by an error or by a signal"
    order = 99
    def __init__(self, at, sig=None): self.at,self.sig,self.n = at,sig,0
    def after_batch(self):
        if not self.training: return
        self.n += 1
        if self.n!=self.at: return
        if self.sig is None: raise RuntimeError('stopped')
        os.kill(os.getpid(), self.sig)

def fit(folder, stop=None, seed=0, reg=True, extra=(), say=None, **kw):
    learn = make(seed, cbs=[ResetState, *([ActivationReg()] if reg else [])], **kw)
    cbs = [Resumable(folder, every_steps=2, say=say), *extra, *([stop] if stop else [])]
    with learn.no_logging(): learn.fit_one_cycle(3, 1e-2, cbs=cbs)
    return learn

def stages(folder, stop=None, seed=0):
    learn,run = make(seed, cbs=[ResetState, ActivationReg()]),RunState(folder, every_steps=2, say=None)
    with learn.no_logging():
        for k,(to,lr) in enumerate([(-1,.02),(-2,.01),(0,slice(.001,.01))]):
            if run.done(k, learn): continue
            learn.freeze_to(to)
            learn.fit_one_cycle(2, lr, cbs=[run.cb(k), *([stop] if stop else [])])
    return learn

def _process(folder, mode, at, sig):
    "Run this file as a script; returns the exit code and what it ended with"
    out = Path(folder)/'weights.json'
    r = subprocess.run([sys.executable, __file__, str(folder), mode, str(at), str(int(sig))], capture_output=True, text=True, timeout=300)
    return r.returncode,r.stderr,torch.tensor(json.loads(out.read_text()), dtype=torch.float64) if out.exists() else None

def test_sigkill_at_a_random_step_then_the_same_bits(tmp_path):
    at = random.SystemRandom().randint(3, 26)
    want = weights(fit(tmp_path/'whole'))
    code,_,w = _process(tmp_path, 'fit', at, signal.SIGKILL)
    assert code==-signal.SIGKILL and w is None, at
    assert torch.equal(weights(fit(tmp_path/'run', seed=9)), want), f"killed at step {at}"

def test_sigterm_saves_leaves_and_goes_on(tmp_path):
    want = weights(fit(tmp_path/'whole'))
    code,err,w = _process(tmp_path, 'fit', 12, signal.SIGTERM)
    assert code==143 and 'SIGTERM' in err and w is None
    assert [load_state(o)['train_iter'] for o in sorted((tmp_path/'run').iterdir())][-1]==13
    assert torch.equal(weights(fit(tmp_path/'run', seed=9)), want)

def test_stages_killed_again_and_again(tmp_path):
    want,at = weights(stages(tmp_path/'whole')),random.SystemRandom().randint(14, 22)
    for _ in range(2):
        code,err,w = _process(tmp_path, 'stages', at, signal.SIGKILL)
        assert code==-signal.SIGKILL and w is None, err
    assert torch.equal(weights(stages(tmp_path/'run', seed=9)), want), f"killed every {at} steps"

_opts = {'adam_ulmfit':adam_ulmfit, 'fastai Adam':Adam, 'fastai SGD':partial(SGD, mom=.9), 'FusedSGD':partial(FusedSGD, mom=.9)}
_opts['torch AdamW'] = partial(OptimWrapper, opt=torch.optim.AdamW)

@pytest.mark.parametrize('opt_func', _opts.values(), ids=_opts)
def test_every_optimizer(tmp_path, opt_func):
    want = weights(fit(tmp_path/'whole', opt_func=opt_func))
    with pytest.raises(RuntimeError, match='stopped'): fit(tmp_path/'run', Stop(14), opt_func=opt_func)
    assert torch.equal(weights(fit(tmp_path/'run', opt_func=opt_func, seed=9)), want)

@pytest.mark.parametrize('at', [1,2,5,9,10,17,18,26])
@pytest.mark.parametrize('loader', ['fastai','torch','own'])
def test_every_loader_and_place(tmp_path, loader, at):
    whole = fit(tmp_path/'whole', loader=loader)
    with pytest.raises(RuntimeError, match='stopped'): fit(tmp_path/'run', Stop(at), loader=loader)
    again = fit(tmp_path/'run', seed=9 if at>1 else 0, loader=loader)
    assert torch.equal(weights(again), weights(whole))
    assert torch.equal(torch.stack(again.recorder.losses), torch.stack(whole.recorder.losses))
    assert [o[:2] for o in again.recorder.values]==[o[:2] for o in whole.recorder.values]
    assert again.recorder.hps['lr']==whole.recorder.hps['lr']

def test_killed_twice_in_one_epoch(tmp_path):
    want = weights(fit(tmp_path/'whole'))
    for _ in range(2):
        with pytest.raises(RuntimeError, match='stopped'): fit(tmp_path/'run', Stop(3))
    assert torch.equal(weights(fit(tmp_path/'run', seed=9)), want)

def test_accumulated_gradients(tmp_path):
    acc = lambda: [GradientAccumulation(24)]
    want = weights(fit(tmp_path/'whole', extra=acc()))
    with pytest.raises(RuntimeError, match='stopped'): fit(tmp_path/'run', Stop(14), extra=acc())
    assert torch.equal(weights(fit(tmp_path/'run', seed=9, extra=acc())), want)

def test_callbacks_go_on_too(tmp_path):
    cbs = lambda d: [History(), NTAvg(n=0), NaNGuard(every=3), SaveBest(d/'best'), EarlyStop(9), TimeBudget('1h', say=None)]
    a = cbs(tmp_path/'a')
    want = fit(tmp_path/'a', extra=a)
    with pytest.raises(RuntimeError, match='stopped'): fit(tmp_path/'b', Stop(23), extra=cbs(tmp_path/'b'))
    b = cbs(tmp_path/'b')
    got = fit(tmp_path/'b', seed=9, extra=b)
    assert torch.equal(weights(got), weights(want))
    assert a[0].steps['loss']==b[0].steps['loss'] and [e['valid_loss'] for e in a[0].epochs]==[e['valid_loss'] for e in b[0].epochs]
    assert a[1].seen==b[1].seen and a[1].t==b[1].t and (a[3].best,a[3].best_epoch)==(b[3].best,b[3].best_epoch)

def test_a_torn_checkpoint_falls_back(tmp_path):
    want = weights(fit(tmp_path/'whole'))
    with pytest.raises(RuntimeError, match='stopped'): fit(tmp_path/'run', Stop(15))
    old,new = sorted((tmp_path/'run').iterdir())
    os.truncate(new/'state.safetensors', (new/'state.safetensors').stat().st_size//2)
    assert torch.equal(weights(fit(tmp_path/'run', seed=9)), want)

def test_a_changed_byte_is_seen(tmp_path):
    save_state(tmp_path/'s', dict(w=torch.zeros(100)))
    f = tmp_path/'s'/'state.safetensors'
    b = bytearray(f.read_bytes())
    b[-3] ^= 1
    f.write_bytes(b)
    with pytest.raises(ValueError, match='hash is wrong'): load_state(tmp_path/'s')

def test_all_torn_is_an_error(tmp_path):
    with pytest.raises(RuntimeError, match='stopped'): fit(tmp_path, Stop(15))
    for o in tmp_path.iterdir(): (o/'state.json').write_text('')
    with pytest.raises(ValueError, match='Delete the folder'): fit(tmp_path)

def test_another_training_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match='stopped'): fit(tmp_path, Stop(15))
    go = lambda lr=1e-2, **kw: make(cbs=[ResetState]).fit_one_cycle(3, lr, cbs=Resumable(tmp_path, **kw))
    with pytest.raises(ValueError, match='schedule was'): go(2e-2)
    with pytest.raises(ValueError, match='optimizer was FusedAdam.* and is Optimizer'): fit(tmp_path, opt_func=SGD)
    with pytest.raises(ValueError, match='config was None and is'): go(config=dict(data='x'))
    with pytest.raises(ValueError, match='ask `RunState.done`'): go(stage=2)
    other = Learner(DataLoaders(DataLoader(_data(), bs=8), DataLoader(_data(), bs=8)), nn.Linear(3, 1), nn.MSELoss())
    with pytest.raises(ValueError, match='model was'): other.fit(3, cbs=Resumable(tmp_path))

def test_another_plan_is_refused(tmp_path):
    "What drives an unfreezing schedule says what its plan is; the first stage, the epochs and the model are the same in all of these"
    plan = lambda lr=.01, **kw: UnfreezeSchedule(3, [Stage(1, lr=.01),Stage('all', 2, lr=lr, **kw)])
    go = lambda sched, *cbs, **kw: make(cbs=[ResetState]).fit_unfreeze(sched, cbs=[Resumable(tmp_path, every_steps=2, say=None),*cbs], **kw)
    with pytest.raises(RuntimeError, match='stopped'): go(plan(), Stop(15))
    for other,why in ((plan(.02), 'another training: plan: stage 2: lr was 0.01 and is 0.02. Use'),(plan(factor=None), 'plan: stage 2: factor was 2.6 and is None'),
        (plan(schedule='cosine'), "plan: stage 2: schedule was stlr and is cosine"),(UnfreezeSchedule(3, [Stage('all', 3)]), 'plan: stage 1: open was 1 and is all')):
        with pytest.raises(ValueError, match=why): go(other)
    with pytest.raises(ValueError, match='plan: keep_state was False and is True'): go(plan(), keep_state=True)
    go(plan(name='by another name'))

def test_finished_is_loaded_and_said(tmp_path):
    said,want = [],weights(fit(tmp_path))
    learn = fit(tmp_path, seed=9, say=said.append)
    assert torch.equal(weights(learn), want) and learn.train_iter==27 and 'finished' in said[0]

def test_the_learner_is_left_as_it_was(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match='stopped'): fit(tmp_path, Stop(11))
    learn = fit(tmp_path)
    assert not {'_with_events','all_batches'} & set(learn.__dict__)
    with learn.no_logging(): learn.fit(1)
    assert len(learn.recorder.losses)==9 and len(list(tmp_path.iterdir()))==2
    signal.signal(signal.SIGTERM, before)

def test_no_pickle_in_a_checkpoint(tmp_path):
    fit(tmp_path)
    assert {o.suffix for o in tmp_path.rglob('*') if o.is_file()}=={'.json','.safetensors'}

_plain = st.none()|st.booleans()|st.integers(-2**53, 2**53)|st.floats(allow_nan=False)|st.text(max_size=5)
_tensor = st.lists(st.floats(-1e6, 1e6, width=32), max_size=4).map(lambda o: torch.tensor(o))
_keys = st.text(max_size=3)|st.integers(0, 9)
_nest = st.recursive(_plain|_tensor, lambda c: st.lists(c, max_size=3)|st.tuples(c, c)|st.dictionaries(_keys, c, max_size=3), max_leaves=12)

def _equal(a, b):
    if isinstance(a, torch.Tensor): return torch.equal(a, b) and a.dtype==b.dtype
    if type(a) is not type(b): return False
    if isinstance(a, (list,tuple)): return len(a)==len(b) and all(map(_equal, a, b))
    return list(a)==list(b) and all(_equal(a[k], b[k]) for k in a) if isinstance(a, dict) else a==b

@settings(max_examples=200, deadline=None)
@given(_nest)
def test_pack_is_exact(obj):
    ts = {}
    assert _equal(unpack(json.loads(json.dumps(pack(obj, ts))), ts), obj)

if __name__=='__main__':
    torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', torch.get_num_threads())))
    folder,mode,at,sig = Path(sys.argv[1]),sys.argv[2],int(sys.argv[3]),int(sys.argv[4])
    learn = dict(fit=fit, stages=stages)[mode](folder/'run', Stop(at, sig) if at else None)
    (folder/'weights.json').write_text(json.dumps(weights(learn).tolist()))
