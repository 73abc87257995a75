"The event log: what goes in comes out, what is torn or foreign is told, its size is bounded; layer statistics against plain computation"
import json,math
from types import SimpleNamespace
import numpy as np,pytest,torch
from hypothesis import given,settings,strategies as st
from torch import nn
from fastai.callback.core import Callback
from fastai.callback.schedule import *
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader
from fastai.learner import Learner
from ulmfit_t5.core import seed_everything
from ulmfit_t5.models.awd_lstm import language_model
from ulmfit_t5.models.t5 import T5,T5Loss,t5_config
from ulmfit_t5.train.callbacks import GradClip
from ulmfit_t5.train.events import *
from ulmfit_t5.train.layer_stats import *
from ulmfit_t5.train.layer_stats import _Probe
from ulmfit_t5.train.optimizers import FusedAdam,FusedSGD
from ulmfit_t5.train.steer import steering
from ulmfit_t5.train.unfreeze import UnfreezeSchedule

def make(seed=0, n=48, opt_func=FusedAdam, **kw):
    seed_everything(seed)
    x = torch.randint(0, 9, (n, 6))
    dl = DataLoader(list(zip(x, x.float().mean(1, keepdim=True))), bs=8, device='cpu')
    model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 1))
    split = lambda m: [list(o.parameters()) for o in (m[0],m[2],m[4])]
    learn = Learner(DataLoaders(dl, dl), model, nn.MSELoss(), opt_func=opt_func, splitter=split, **kw)
    learn.logger = lambda *_: None
    return learn

values = st.recursive(st.none()|st.booleans()|st.integers(-10**12, 10**12)|st.floats()|st.text(max_size=9),
    lambda o: st.lists(o, max_size=4)|st.dictionaries(st.text(max_size=4).filter(lambda s: s!='~'), o, max_size=4), max_leaves=12)

def same(a, b):
    if isinstance(a, float) and isinstance(b, (int,float)): return math.isnan(a) and math.isnan(b) or a==b or abs(a-b)<=6e-5*abs(a)
    if isinstance(a, dict): return isinstance(b, dict) and a.keys()==b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list): return isinstance(b, list) and len(a)==len(b) and all(map(same, a, b))
    return a==b and type(a) is type(b)

@settings(deadline=None, max_examples=150)
@given(values)
def test_lines_round_trip(o):
    b = to_line('x', v=o)
    assert b.endswith(b'\n') and b.count(b'\n')==1
    assert same(o, from_line(b)['v'])

@settings(deadline=None, max_examples=30)
@given(st.integers(1, 400), st.integers(20, 400), st.integers(1, 20_000))
def test_thinning_is_bounded(quota, size, n):
    "Bytes grow with the logarithm, steps between events never shrink, the first is kept"
    t,kept = Thin(quota),[]
    for i in range(n):
        if t.take():
            kept.append(i)
            t.wrote(size)
    assert kept[0]==0 and (np.diff(kept)>=1).all()
    assert len(kept)*size <= (quota+size)*(math.log2(1+n*size/quota)+2)

def logged(path, fits=1, n_epoch=2, **kw):
    learn = make()
    log = RunLog(path, **{'every':1, **kw})
    for _ in range(fits): learn.fit(n_epoch, .01, cbs=log)
    return learn

@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    p = tmp_path_factory.mktemp('log')/'run.jsonl'
    logged(p, title='whole')
    return p.read_bytes()

def test_a_log_torn_between_its_first_line_and_the_newline(whole, tmp_path):
    (p := tmp_path/'run.jsonl').write_bytes(whole[:whole.index(b'\n')])
    with pytest.raises(ValueError, match='holds no fit'): read_log(p)

@settings(deadline=None, max_examples=60)
@given(st.data())
def test_every_torn_log_reads_or_tells(whole, tmp_path_factory, data):
    "Cut anywhere, the log reads up to its last whole line; before the first fit there is a sentence"
    cut = data.draw(st.integers(1, len(whole)-1))
    p = tmp_path_factory.mktemp('torn')/'run.jsonl'
    p.write_bytes(whole[:cut])
    head = whole.index(b'\n')+1
    fit = whole.index(b'\n', head)+1
    if cut<fit:
        with pytest.raises(ValueError, match='is not an event log|holds no fit'): read_log(p)
        return
    run = read_log(p)
    assert run.torn==(whole[cut-1:cut]!=b'\n') and len(run)<=12 and run.title=='whole'

def test_bad_files_are_told(tmp_path, whole):
    p = tmp_path/'a.jsonl'
    with pytest.raises(FileNotFoundError, match='there is no log'): read_log(p)
    for text in ('', 'x', '[1]\n', '{"e":"log"}\n', 'a,b\n1,2\n', '\x80'):
        p.write_text(text, encoding='utf8')
        with pytest.raises(ValueError, match='is not an event log'): read_log(p)
    first,*rest = whole.split(b'\n')
    p.write_bytes(b'\n'.join([first.replace(b'"version":1', b'"version":7'), *rest]))
    with pytest.raises(ValueError, match='of version 7, and this ulmfit_t5 reads versions up to 1'): read_log(p)
    p.write_bytes(b'\n'.join([first, rest[0], b'{"e":', *rest[1:]]))
    with pytest.raises(ValueError, match='line 3 of .* is not an event'): read_log(p)
    p.write_bytes(b'\n'.join([first, b'{"e":"fit"}', *rest[1:]]))
    with pytest.raises(ValueError, match='lacks something'): read_log(p)
    other = rest[0].replace(b'"groups":["0","2","4"]', b'"groups":["0","2","x"]')
    assert other!=rest[0]
    p.write_bytes(b'\n'.join([first, *rest[:-1], other, b'']))
    with pytest.raises(ValueError, match='models with other groups'): read_log(p)

def test_kinds_of_later_use_are_left_out(tmp_path, whole):
    p = tmp_path/'a.jsonl'
    p.write_bytes(whole+to_line('weather', sunny=True))
    assert len(read_log(p))==12

def test_a_foreign_file_stays(tmp_path):
    p = tmp_path/'thesis.txt'
    p.write_text('years of work')
    with pytest.raises(ValueError, match='or another name to write to'): logged(p)
    assert p.read_text()=='years of work'

def test_append_goes_on_after_a_kill(tmp_path, whole):
    p = tmp_path/'a.jsonl'
    p.write_bytes(whole[:-30])
    logged(p, append=True)
    run = read_log(p)
    assert run.torn and len(run.fits)==2 and len(run.ends)==1 and len(run.epochs)==4
    logged(p)
    assert len(read_log(p).fits)==1 and not read_log(p).torn

def test_log_says_what_happened(tmp_path):
    "Rates, open groups, losses and metrics of every step are those of the training"
    learn,rows = make(metrics=lambda p,y: (p-y).abs().max()),[]
    class Watch(Callback):
        order = 90
        def before_step(self): self.row = [h['lr'] if any(p.requires_grad for p in g) else 0. for h,g in zip(self.opt.hypers, self.opt.param_lists)]
        def after_batch(self):
            if self.training: rows.append((self.learn.loss.item(), self.row))
    steering(learn).send('freeze', group=1, at=20)
    sched = UnfreezeSchedule.gradual(3, 1, 2, lr=.01)
    learn.fit_unfreeze(sched, cbs=[Watch(),RunLog(tmp_path/'a.jsonl', every=3)])
    run = read_log(tmp_path/'a.jsonl')
    assert len(run)==len(rows)==24 and run.step.tolist()==list(range(24))
    np.testing.assert_allclose(run.loss, [r[0] for r in rows], rtol=1e-4)
    np.testing.assert_allclose(run.lr, [r[1] for r in rows], rtol=1e-4)
    assert [run.open_at(s) for s in (0,6,12,20)]==[[False,False,True],[False,True,True],[True,True,True],[True,False,True]]
    assert [c['command'] for c in run.commands]==['freeze'] and run.commands[0]['step']==20
    assert UnfreezeSchedule.from_dict(run.fits[0]['schedule']).n_groups==3
    assert [s.step for s in run.samples]==list(range(0, 24, 3))
    np.testing.assert_allclose([e['values']['valid_loss'] for e in run.epochs], [v[1] for v in learn.recorder.values], rtol=1e-4)
    assert not hasattr(learn, 'layer_stats') and not hasattr(learn, 'run_log')

def test_long_runs_stay_small(tmp_path):
    "Forty thousand steps, written as the callback does, fit in half a megabyte; means are over the steps left out"
    log,file = RunLog(tmp_path/'a.jsonl'),LogFile(tmp_path/'a.jsonl')
    log.file,log.flushed,log.learn = file,0,SimpleNamespace()
    losses = np.random.default_rng(0).random(40_000)
    for i,l in enumerate(losses):
        log.step = i
        log.losses.append(torch.tensor(l))
        if log.thin.take():
            log.buf.append((i,torch.stack(log.losses).float().mean(),[.001*(i%7),0.,.01,.002]))
            log.losses = []
        if len(log.buf)>=64: log._flush()
    log._flush()
    assert file.size<500_000
    es = [json.loads(b) for b in (tmp_path/'a.jsonl').read_bytes().splitlines()[1:]]
    steps,means = [s for e in es for s in e['step']],[v for e in es for v in e['loss']]
    ends = [-1,*steps]
    for k in (0,1,len(steps)//2,len(steps)-1): assert abs(means[k]-losses[ends[k]+1:ends[k+1]+1].mean())<1e-4

def test_a_full_disk_does_not_stop_the_training(tmp_path, capsys):
    learn,log = make(),RunLog(tmp_path/'a.jsonl', every=1)
    def full(*lines): raise OSError(28, 'No space left on device')
    learn.fit(1, .01, cbs=log)
    log.file.write = full
    learn.fit(1, .01, cbs=log)
    out = capsys.readouterr().out
    assert out.count('stops here: No space left on device')==1 and len(read_log(log.path))==6

@pytest.mark.parametrize('opt_func', [FusedAdam,FusedSGD])
def test_stats_against_plain_computation(opt_func):
    "Every sample: gradient after clipping, update, drift and outputs, computed again by hand"
    learn = make(opt_func=opt_func)
    stats,seen = layer_stats(learn, every=1),[]
    start = [p.detach().double().clone() for p in learn.model.parameters()]
    class Hand(Callback):
        order = 13
        def before_batch(self):
            if self.training:
                with torch.no_grad():
                    h = self.model[:4](self.xb[0])
                    self.out = h.mean(),h.std(correction=0),(h.amax(0)-h.amin(0)<=1e-6).float().mean()
        def before_step(self):
            self.w = [p.detach().double().clone() for p in self.model.parameters()]
            self.g = [None if p.grad is None else p.grad.double().clone() for p in self.model.parameters()]
        def after_step(self):
            now = [p.detach().double() for p in self.model.parameters()]
            pick = lambda f: [torch.cat([f(i).flatten() for i in idx]).norm().item() for idx in ((0,),(1,2),(3,4))]
            z = lambda i: torch.zeros_like(self.w[i])
            seen.append((pick(lambda i: self.w[i]), pick(lambda i: z(i) if self.g[i] is None else self.g[i]), pick(lambda i: now[i]-self.w[i]),
                pick(lambda i: now[i]-start[i]), [float(o) for o in self.out]))
    learn.create_opt()
    learn.freeze_to(1)
    learn.fit(2, .05, cbs=[Hand(),GradClip(.1)])
    learn.unfreeze()
    learn.fit(1, .05, cbs=[Hand(),GradClip(.1)])
    assert len(stats.samples)==len(seen)==18
    for s,(w,g,up,far,out) in zip(stats.samples, seen):
        np.testing.assert_allclose(s.weight, w, rtol=1e-5)
        np.testing.assert_allclose([o or 0. for o in s.grad], g, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(s.update, up, rtol=2e-3, atol=1e-6)
        np.testing.assert_allclose(s.moved, far, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose([s.mean[1],s.sd[1],s.dead[1]], out, rtol=1e-4, atol=1e-6)
    assert stats.samples[0].grad[0] is None and stats.samples[-1].grad[0]>0

def test_stats_leave_the_training_alone():
    "The same weights, bit for bit, with and without; no hook stays behind"
    a,b = make(),make()
    layer_stats(a, every=1)
    for l in (a,b): l.fit(2, .02)
    assert len(layer_stats(a).samples)==len(a.recorder.losses)
    assert all(torch.equal(p, q) for p,q in zip(a.model.parameters(), b.model.parameters()))
    assert not any(m._forward_hooks for m in a.model.modules())

def test_the_rate_finder_leaves_no_trace(tmp_path):
    "Its mock training is neither sampled nor logged, and the fit after it is"
    learn = make(path=tmp_path)
    stats,log = layer_stats(learn, every=1),RunLog(tmp_path/'a.jsonl')
    learn.add_cb(log)
    learn.lr_find(num_it=5, show_plot=False)
    assert stats.samples==[] and not log.path.exists()
    learn.fit(1, .01)
    assert [s.step for s in stats.samples]==list(range(6)) and len(read_log(log.path))==6

def test_a_reset_is_seen_in_the_drift():
    "A frozen group is not measured again, until somebody writes to its weights"
    learn = make()
    stats,steer = layer_stats(learn, every=1),steering(learn)
    learn.fit(1, .05)
    steer.send('freeze', group=1)
    learn.fit(1, .05)
    held = [s.moved[1] for s in stats.samples[6:]]
    assert held[0]>0 and len(set(held))==1
    steer.send('reset', group=1, at=14)
    learn.fit(1, .05)
    assert [s.moved[1] for s in stats.samples[12:]]==[held[0]]*2+[0.]*4

def test_samples_keep_to_their_share(monkeypatch):
    "By a clock of our own: when samples cost much, the next waits until they are one hundredth of the time"
    import ulmfit_t5.train.layer_stats as m
    now = [0.]
    def clock():
        now[0] += .001
        return now[0]
    monkeypatch.setattr(m.time, 'perf_counter', clock)
    learn = make(n=800)
    stats = layer_stats(learn, every_s=.0, share=.05)
    class Tick(Callback):
        def after_batch(self): now[0] += .01
    learn.fit(4, .01, cbs=Tick())
    assert 3<len(stats.samples)<400 and stats.spent<=.05*now[0]+stats.cost

def awd(): return language_model(60, dict(emb_sz=8, n_hid=12, n_layers=2))
def t5(): return T5(t5_config('compact', vocab_sz=60, d_model=8, d_kv=4, d_ff=16, n_heads=2, n_layers=2))

@pytest.mark.parametrize('make_model', [awd,t5])
def test_layers_of_our_models(make_model):
    "All parameters are in one layer each, and layers stand under the group that the optimizer has them in"
    m = make_model()
    ls,gs = layers_of(m),m.groups()
    assert sorted(id(p) for l in ls for p in l.params)==sorted({id(p) for g in gs for p in g})
    assert all(any(p is q for q in gs[l.group]) for l in ls for p in l.params) and [l.group for l in ls]==sorted(l.group for l in ls)

def test_probe_reads_chunks_tuples_and_dicts():
    "Outputs of several calls are added up; bool and integer outputs are passed over"
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(3, 4)
        def forward(self, x): return dict(mask=x>0, out=(self.lin(x),))
    m = nn.Sequential(M())
    x,p = torch.randn(10, 3),_Probe(layers_of(m, lambda m: [list(m.parameters())]), m)
    for c in x.split(4): m(c)
    p.close()
    h = m[0].lin(x)
    np.testing.assert_allclose(p.read()[0].tolist(), [h.mean().item(),h.std(correction=0).item(),0.], rtol=1e-4, atol=1e-6)

@pytest.mark.parametrize('frozen', [(),(0,),(0,1)])
def test_t5_is_measured_block_by_block(frozen, tmp_path):
    "A T5 that learns to repeat its input: encoder and decoder blocks, norms and position biases included; frozen groups stand still, the others move"
    seed_everything(0)
    x = torch.randint(3, 60, (16, 7))
    dl,m = DataLoader(list(zip(x, x, x)), bs=4, device='cpu', n_inp=2),t5()
    learn = Learner(DataLoaders(dl, dl), m, T5Loss(m), opt_func=FusedAdam, splitter=lambda m: m.groups())
    learn.logger = lambda *_: None
    for g in frozen: steering(learn).send('freeze', group=g)
    learn.fit(2, .01, cbs=RunLog(tmp_path/'a.jsonl', every=1))
    run = read_log(tmp_path/'a.jsonl')
    last = [{k:run.rows(k, group=g)[1][-1] for k in MEASURES} for g in range(3)]
    for g,m in enumerate(last):
        assert (m['drift']==0 and m['grad'] is None) if g in frozen else (m['drift']>0 and m['grad']>0 and m['update']>0), (g,m)
        assert m['sd']>0 and m['dead']==0
    assert {l[1] for l in run.layers}>={'Embedding','Linear','RMSNorm'} and len(run.layers)>20
