"Several processes from the notebook: losses as of one, everything comes back, errors are told, nothing is left behind"
import asyncio,json,os,signal,socket,subprocess,sys,threading,time,uuid
from importlib import import_module
from itertools import combinations_with_replacement
from pathlib import Path
import numpy as np,pytest,torch
from hypothesis import given,settings,strategies as st
from ulmfit_t5.data.sharding import even_parts,padded_work,runs
from ulmfit_t5.train.distributed import LinePanel,WorkerError

SCRIPT = '''
"Trains a language model, a classifier and a T5: alone, or as one of several processes"
import json,os,sys,torch
from fastai.torch_core import rank_distrib
from ulmfit_t5.core import seed_everything
from ulmfit_t5.data.datasets import load_dataset
from ulmfit_t5.data.loaders import TextDataLoaders
from ulmfit_t5.models.awd_lstm import COMPACT_CLAS,COMPACT_LM
from ulmfit_t5.train.unfreeze import UnfreezeSchedule
from ulmfit_t5.learner import language_model_learner,text_classifier_learner
from ulmfit_t5.text2text import span_corruption_learner
import ulmfit_t5.portable,ulmfit_t5.train.distributed

torch.set_num_threads(1)
df = load_dataset('dbpedia')['train'].sample(150, random_state=1)
size,plain,data = dict(emb_sz=16, n_hid=24, n_layers=2),dict(alpha=0, beta=0, bf16=False),dict(cache=sys.argv[1], device='cpu', progress=False)

def lm():
    dls = TextDataLoaders.from_df(df, is_lm=True, bs=5, seq_len=24, **data)
    return language_model_learner(dls, None, COMPACT_LM|size, drop_mult=0, reg=dict(bf16=False)),dict(plan=1, lr=1e-2)

def classifier():
    dls = TextDataLoaders.from_df(df, bs=16, **data)
    learn = text_classifier_learner(dls, None, COMPACT_CLAS|size, drop_mult=0, head=dict(head_p=(0,0)), reg=plain, weight=[1.+i%3 for i in range(14)])
    return learn,dict(plan=UnfreezeSchedule.gradual(len(learn.model.groups()), 1, 1, lr=1e-2))

def t5():
    config = dict(d_model=16, d_kv=8, d_ff=32, n_heads=2, n_layers=1, p=0.)
    learn = span_corruption_learner(df.text.tolist(), config=config, data=dict(inputs_length=64, bs=6, device='cpu'), reg=dict(bf16=False))
    return learn,dict(plan=1, lr=1e-2)

out = {}
for f in (lm,) if 'lm' in sys.argv else (lm,classifier,t5):
    seed_everything(1)
    learn,kw = f()
    if rank_distrib(): # a head of its own, as without a seed; that of the first counts
        for p in learn.model.parameters(): p.data += .1
    with learn.no_bar(),learn.no_logging():
        if int(os.environ.get('WORLD_SIZE', 0))>1: learn.fit_distributed(**kw, fsdp='fsdp' in sys.argv)
        else: (learn.fit_one_cycle if 'lr' in kw else learn.fit_unfreeze)(*kw.values())
    ps = [p.detach().double().norm().item() for p in learn.model.parameters()]
    out[f.__name__] = dict(losses=[float(o) for o in learn.recorder.losses], values=[[float(v) for v in o] for o in learn.recorder.values], weights=ps)
if not rank_distrib(): print('RESULT '+json.dumps(out))
'''

@pytest.fixture(autouse=True)
def marked(monkeypatch):
    "Whatever a test starts carries its mark, and is gone when it ends"
    mark = uuid.uuid4().hex
    monkeypatch.setenv('ULMFIT_T5_MARK', mark)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    old = signal.signal(signal.SIGINT, signal.default_int_handler) # a shell lets what runs in the background ignore it
    yield mark
    signal.signal(signal.SIGINT, old)
    assert not alive(mark), f'left behind: {alive(mark)}'

def alive(mark, but=os.getpid()):
    "Processes that carry the mark"
    res = []
    for p in Path('/proc').glob('[0-9]*'):
        try:
            if int(p.name)!=but and mark.encode() in (p/'environ').read_bytes(): res.append((int(p.name),(p/'cmdline').read_text().replace('\0', ' ')[:80]))
        except OSError: pass
    return res

def gone(mark, within=60.):
    end = time.monotonic()+within
    while alive(mark) and time.monotonic()<end: time.sleep(.05)
    return not alive(mark)

def free_port():
    with socket.create_server(('127.0.0.1', 0)) as s: return s.getsockname()[1]

def result(text):
    found = [o for o in text.splitlines() if o.startswith('RESULT ')]
    assert found, text[-4000:]
    return json.loads(found[-1][7:])

def launch(cmd, nodes):
    "Start a launcher for each node, with `cmd(rank of the node, port)`, and read what the first process printed"
    env,port = os.environ|dict(GLOO_SOCKET_IFNAME='lo'),free_port()
    start = lambda r: subprocess.Popen([str(o) for o in cmd(r, port)], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    ps = [start(r) for r in range(nodes)]
    texts = [p.communicate(timeout=300)[0] for p in ps]
    assert not any(p.returncode for p in ps), texts[0][-4000:]
    assert 'Warning' not in ''.join(texts).replace('torch.distributed.run', ''), texts[0][-4000:]
    return result('\n'.join(texts))

def torchrun(*args, n=2, nodes=1):
    "Start a script with torchrun"
    return launch(lambda r, port: [sys.executable,'-m','torch.distributed.run','--nnodes',nodes,'--node-rank',r,'--nproc-per-node',n//nodes,
        '--master-addr','127.0.0.1','--master-port',port,*args], nodes)

def accelerate(*args, n=2, nodes=1):
    "Start a script with `accelerate launch`"
    return launch(lambda r, port: [sys.executable,'-m','accelerate.commands.launch','--multi_gpu','--num_machines',nodes,'--machine_rank',r,'--num_processes',n,
        '--main_process_ip','127.0.0.1','--main_process_port',port,'--mixed_precision','no','--dynamo_backend','no',*args], nodes)

def check_same(one, many):
    for k,a in one.items():
        b = many[k]
        assert len(a['losses'])==len(b['losses'])>20
        for what in ('losses','weights'): np.testing.assert_allclose(b[what], a[what], atol=1e-4, rtol=1e-5, err_msg=f'{what} of {k}')
        np.testing.assert_allclose(b['values'], a['values'], rtol=1e-5, atol=1e-5, err_msg=f'epochs of {k}')

@pytest.fixture(scope='module')
def script(tmp_path_factory):
    d = tmp_path_factory.mktemp('script')
    (d/'train.py').write_text(SCRIPT)
    r = subprocess.run([sys.executable,d/'train.py',d/'cache'], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ|dict(OMP_NUM_THREADS='1'))
    return d,result(r.stdout)

def test_torchrun_gives_the_losses_of_one_process(script):
    "Streams that do not divide by two, opening groups, batch normalisation, class weights, tokens of a T5: all as one process has them"
    d,one = script
    check_same(one, torchrun(d/'train.py', d/'cache'))

def test_a_language_model_on_two_machines(script):
    "Two launchers that only know each other's address, as on two machines; the shortest of the three trainings"
    d,one = script
    check_same(dict(lm=one['lm']), torchrun(d/'train.py', d/'cache', 'lm', nodes=2))

@pytest.mark.slow
@pytest.mark.parametrize('launcher', [torchrun,accelerate])
def test_two_machines(launcher, script):
    "Two launchers that only know each other's address, as on two machines"
    d,one = script
    check_same(one, launcher(d/'train.py', d/'cache', nodes=2))

@pytest.mark.slow
def test_a_launched_script_trains_in_pieces(script):
    "FSDP under a launcher: weights begin as those of the first process, and texts of unlike length do not make processes wait for each other for ever"
    d,one = script
    check_same(one, torchrun(d/'train.py', d/'cache', 'fsdp'))

class Quiet(LinePanel):
    "A panel that calls a function at the first step"
    def __init__(self, at_step=None):
        super().__init__(out=lambda s: None)
        self.at_step,self.said = at_step,[]
    def on(self, m):
        self.said.append(m)
        if m['kind']=='step' and self.at_step and sum(o['kind']=='step' for o in self.said)==1: self.at_step()

def small_lm(cache, n=100, device='cpu', **kwargs):
    from ulmfit_t5.core import seed_everything
    from ulmfit_t5.data.datasets import load_dataset
    from ulmfit_t5.data.loaders import TextDataLoaders
    from ulmfit_t5.models.awd_lstm import COMPACT_LM
    from ulmfit_t5.learner import language_model_learner
    import_module('ulmfit_t5.portable')
    seed_everything(1)
    texts = load_dataset('dbpedia')['train'].text.tolist()[:n]
    dls = TextDataLoaders.from_list(texts, is_lm=True, bs=4, seq_len=24, cache=cache, device=device, progress=False)
    return language_model_learner(dls, None, COMPACT_LM|dict(emb_sz=16, n_hid=24, n_layers=2), drop_mult=0, reg=dict(bf16=False), **kwargs)

def test_everything_comes_back(tmp_path):
    "Weights, averages of the optimizer, curves, callbacks, place of the loaders: a fit afterwards goes on as if all had happened here"
    from ulmfit_t5.train.callbacks import History
    here,there = (small_lm(tmp_path, cbs=[History()]) for _ in range(2))
    panel = Quiet()
    with here.no_bar(),here.no_logging(),there.no_bar(),there.no_logging():
        here.fit_one_cycle(1, 1e-2)
        there.fit_distributed(1, 1e-2, panel=panel)
        close = lambda a,b: np.testing.assert_allclose([float(o) for o in b], [float(o) for o in a], atol=1e-4)
        for _ in range(2):
            close(here.recorder.losses, there.recorder.losses)
            close(here.recorder.values[-1], there.recorder.values[-1])
            for p,q in zip(here.model.parameters(), there.model.parameters()): torch.testing.assert_close(p, q, atol=1e-4, rtol=1e-3)
            close(here.history.steps['loss'], there.history.steps['loss'])
            for o in (here,there): o.fit(1, 1e-3)
    close(here.recorder.hps['lr'] if hasattr(here.recorder, 'hps') else [], there.recorder.hps['lr'])
    r = there.distributed
    assert set(r['ranks'])=={0,1} and r['tokens'][0]==r['tokens'][1]>0 and .5<r['balance']<=1 and not r['stopped']
    assert [o['kind'] for o in panel.said if o['kind'] in ('begin','row','end')]==['begin','row','end']

def small_classifier(cache, n=64):
    "Texts of unlike length, whose shares are read in unlike numbers of chunks"
    from ulmfit_t5.core import seed_everything
    from ulmfit_t5.data.loaders import TextDataLoaders
    from ulmfit_t5.learner import text_classifier_learner
    from ulmfit_t5.models.awd_lstm import COMPACT_CLAS
    import_module('ulmfit_t5.portable')
    seed_everything(1)
    rng = np.random.default_rng(0)
    texts = [' '.join(rng.choice(['good','bad','film','book'], k)) for k in rng.lognormal(4, 1, n).astype(int)+1]
    dls = TextDataLoaders.from_list(texts, [i%2 for i in range(n)], bs=8, cache=cache, device='cpu', progress=False)
    kw = dict(drop_mult=0, head=dict(head_p=(0,0)), reg=dict(alpha=0, beta=0, bf16=False))
    return text_classifier_learner(dls, None, COMPACT_CLAS|dict(emb_sz=16, n_hid=24, n_layers=2), **kw)

@pytest.mark.parametrize('make', [small_lm,small_classifier])
def test_pieces_learn_what_the_whole_learns(make, tmp_path):
    "Fully sharded, groups opening one by one: each process keeps half of every weight, and the whole comes back with its averages"
    from ulmfit_t5.train.unfreeze import UnfreezeSchedule
    here,there = (make(tmp_path, n=24) for _ in range(2))
    plan = UnfreezeSchedule.gradual(len(here.model.groups()), 1, 1, lr=1e-2)
    with here.no_bar(),here.no_logging():
        here.fit_unfreeze(plan)
        there.fit_distributed(plan, panel=Quiet(), fsdp=True)
    np.testing.assert_allclose([float(o) for o in there.recorder.losses], [float(o) for o in here.recorder.losses], atol=1e-4)
    for p,q in zip(here.model.parameters(), there.model.parameters()):
        torch.testing.assert_close(p, q, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(here.opt.state[p]['sqr_avg'], there.opt.state[q]['sqr_avg'], atol=1e-6, rtol=1e-3)

def test_pieces_on_the_cpu_of_a_machine_with_gpus(tmp_path, monkeypatch):
    "What PyTorch takes by itself is the GPU; processes of a group on CPUs keep their pieces there"
    dist = torch.distributed
    from ulmfit_t5.train.fsdp import fully_sharded
    monkeypatch.setattr(torch._C, '_get_accelerator', lambda: torch.device('cuda'))
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ModuleList([torch.nn.Linear(4, 4)]))
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/meet', rank=0, world_size=1)
    try:
        with fully_sharded(net): where = {(p.device_mesh.device_type,p.to_local().device.type) for p in net.parameters()}
    finally: dist.destroy_process_group()
    assert where=={('cpu','cpu')}

@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no CUDA device')
def test_a_gpu_that_the_notebook_uses_already(tmp_path):
    "CUDA is initialised here, which no forked process would survive; weights are those of a plain fit on that GPU"
    here,there = (small_lm(tmp_path, n=40, device='cuda') for _ in range(2))
    torch.ones(1, device='cuda').sum().item()
    assert torch.cuda.is_initialized()
    with here.no_bar(),here.no_logging(): here.fit_one_cycle(1, 1e-2)
    there.fit_distributed(1, 1e-2, n_procs=1, device='cuda', panel=Quiet())
    assert there.distributed['device']=='cuda' and len(there.recorder.losses)==len(here.recorder.losses)>5
    for p,q in zip(here.model.parameters(), there.model.parameters()): torch.testing.assert_close(q.cpu(), p.cpu(), atol=1e-3, rtol=1e-3)

def weights(learn): return [[p.detach().clone() for p in ps] for ps in learn.opt.param_lists]
def far(a, b): return [sum(float((p-q).square().sum()) for p,q in zip(*o))**.5 for o in zip(a, b)]

def test_what_is_held_on_the_board_is_held_everywhere(tmp_path):
    "A frozen group stays, the factor paces the others as here, a command waits for its step, and board, cockpit and log know of it"
    from ulmfit_t5.train.events import RunLog,read_log
    from ulmfit_t5.widgets.board import LayerBoard
    from ulmfit_t5.widgets.cockpit import Cockpit
    import_module('ulmfit_t5.widgets.distributed')
    here,there = (small_lm(tmp_path, n=40) for _ in range(2))
    log,ends,tickets = tmp_path/'run.jsonl',[],[]
    for o in (here,there):
        board,cockpit = LayerBoard(o, every=1),Cockpit(o)
        o.add_cb(RunLog(tmp_path/'here.jsonl' if o is here else log, 'both', every=1))
        o.create_opt()
        was = weights(o)
        board.freeze(0)
        board.set_factor(2.6)
        tickets.append(o.steering.send('freeze', group=1, at=2))
        with o.no_bar(),o.no_logging(): o.fit(1, 1e-2) if o is here else o.fit_distributed(1, 1e-2, how='fit', panel=Quiet())
        ends.append(far(was, weights(o)))
        assert ends[-1][0]==0<ends[-1][1] and tickets[-1].step==2 and not o.steering.queue
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-4, rtol=1e-3)
    n,r = here.steering.steps_done,cockpit.read
    assert there.steering.steps_done==n==there.layer_stats.samples[-1].step+1==r.step
    assert there.steering.frozen[:2]==[True,True] and r.status=='ended' and len(r.rows)==1 and r.loss==pytest.approx(float(here.recorder.losses[-1]), abs=1e-4)
    assert f'after step {n}' in repr(board.picture()) and 'waiting' not in repr(cockpit.picture())
    a,b = read_log(tmp_path/'here.jsonl'),read_log(log)
    np.testing.assert_allclose(b.loss, a.loss, atol=1e-4)
    np.testing.assert_allclose(b.lr, a.lr, rtol=1e-4)
    assert [b.open_at(i)[:2] for i in (1,2)]==[[False,True],[False,False]] and b.layers==a.layers and [o['command'] for o in b.commands]==['freeze']
    board.release()
    board.reset(1)
    assert far(was, weights(there))[1]==0
    with there.no_bar(),there.no_logging(): there.fit(1, 1e-2)
    again = read_log(log)
    assert [f['step'] for f in again.fits]==[0,n] and len(again)==2*n

def test_a_log_given_to_the_fit_is_written(tmp_path):
    "By the first of the processes; and what they can not be told ahead is refused before they start"
    from ulmfit_t5.train.events import RunLog,read_log
    from ulmfit_t5.train.steer import steering
    learn = toy()
    learn.fit_distributed(1, .01, how='fit', build=toy, panel=Quiet(), cbs=[RunLog(tmp_path/'run.jsonl', 'given', max_bytes=50_000)])
    run = read_log(tmp_path/'run.jsonl')
    assert len(run)==len(learn.recorder.losses) and run.title=='given' and len(run.epochs)==1
    ticket,was = steering(learn).send('save', at=1),learn.distributed
    with pytest.raises(ValueError, match='save waits for step 1, and other processes can only be told ahead to freeze'): learn.fit_distributed(1, build=toy, panel=Quiet())
    assert learn.distributed is was and learn.steering.queue==[ticket]

def toy(fail=None):
    "A learner whose second process may fail in its third step"
    from fastai.callback.core import Callback
    from fastai.data.core import DataLoaders
    from fastai.data.load import DataLoader
    from fastai.learner import Learner
    torch.manual_seed(0)
    items = [(torch.randn(4), torch.tensor(i%3)) for i in range(64)]
    learn = Learner(DataLoaders(*[DataLoader(items, bs=8) for _ in range(2)], device='cpu'), torch.nn.Linear(4, 3), loss_func=torch.nn.CrossEntropyLoss())
    class Fail(Callback):
        def before_batch(self):
            if not fail or os.environ.get('RANK')!='1' or self.iter<2: return
            if fail=='raise': return 1/0
            os.kill(os.getpid(), signal.SIGSEGV if fail=='crash' else signal.SIGKILL)
    return learn.add_cb(Fail())

@pytest.mark.parametrize('how,words', [('raise',('process 1 of 2 failed','1/0','ZeroDivisionError')), ('kill',('process 1 of 2 ended by the signal SIGKILL',)),
    ('crash',('process 1 of 2 ended by the signal SIGSEGV','Fatal Python error','in before_batch'))])
def test_a_process_that_fails_is_told(how, words, marked):
    "The traceback is here although the other process waits for this one, and the learner can be used"
    learn = toy()
    was = learn.model.weight.detach().clone()
    with pytest.raises(WorkerError) as e: learn.fit_distributed(2, .1, build=toy, build_args=dict(fail=how), panel=Quiet())
    assert all(o in str(e.value) for o in words), e.value
    assert gone(marked)
    torch.testing.assert_close(learn.model.weight.detach(), was, atol=0, rtol=0)
    with learn.no_bar(),learn.no_logging(): learn.fit(1)

def test_an_interrupt_waits_for_a_start():
    "It comes when the block has ended, and not within"
    from ulmfit_t5.train.distributed import held_interrupts
    seen,old = [],signal.signal(signal.SIGINT, lambda *args: seen.append('interrupt'))
    with held_interrupts():
        signal.raise_signal(signal.SIGINT)
        seen.append('end')
    signal.signal(signal.SIGINT, old)
    assert seen==['end','interrupt']

def test_interrupts_leave_nothing_behind(tmp_path, marked):
    "At any moment: while processes start, and in a step, where what was learned so far is kept"
    learn = toy()
    for s in (.02,.4,1.5):
        t = threading.Timer(s, lambda: os.kill(os.getpid(), signal.SIGINT))
        t.start()
        with pytest.raises(KeyboardInterrupt): learn.fit_distributed(1, build=toy, panel=Quiet())
        t.join()
        assert gone(marked)
    was = learn.model.weight.detach().clone()
    with pytest.raises(KeyboardInterrupt):
        learn.fit_distributed(100_000, .01, how='fit', build=toy, panel=Quiet(lambda: signal.raise_signal(signal.SIGINT)))
    assert gone(marked)
    r = learn.distributed
    assert r['stopped'] and 0<len(learn.recorder.losses)<100_000 and not torch.equal(was, learn.model.weight)

def test_the_stop_button_is_heard(marked):
    "An awaited call leaves the kernel free; its panel ends the run after the batch at hand"
    learn,panel = toy(),Quiet()
    panel.at_step = lambda: panel.ask()
    asyncio.run(asyncio.to_thread(learn.fit_distributed, 100_000, .01, how='fit', build=toy, panel=panel))
    assert learn.distributed['stopped'] and learn.recorder.losses and gone(marked)

@pytest.mark.parametrize('when', ['starting','training'])
def test_an_awaited_run_ends_with_its_cell(when, marked):
    "An interrupt cancels the task of an awaited cell, while processes start as well; what can not reach them is refused"
    import_module('ulmfit_t5.train.steered')
    learn,panel,tickets = toy(),Quiet(),[]
    async def cell():
        run = learn.steer('fit_distributed', 100_000, .01, 2, 'fit', build=toy, panel=panel)
        if when=='starting': asyncio.get_running_loop().call_later(.3, task.cancel)
        await run
    def first_step():
        tickets.append(learn.steering.send('set_rate', group=0, lr=.1))
        loop.call_soon_threadsafe(task.cancel)
    async def main():
        nonlocal loop,task
        loop,task = asyncio.get_running_loop(),asyncio.create_task(cell())
        if when=='training': panel.at_step = first_step
        with pytest.raises(asyncio.CancelledError): await task
    loop = task = None
    asyncio.run(main())
    assert learn.distributed['stopped'] and gone(marked)
    if when=='starting': return
    assert learn.recorder.losses
    with pytest.raises(RuntimeError, match='set_rate does not reach other processes'): tickets[0].wait(5)

def test_they_end_with_the_notebook(tmp_path, marked):
    "`kill -9` of the process that started them"
    code = f'''import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_distributed import toy,Quiet
toy().fit_distributed(100_000, .01, how='fit', build=toy, panel=Quiet(lambda: print('step', flush=True)))'''
    p = subprocess.Popen([sys.executable,'-c',code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try: assert p.stdout.readline().strip()=='step', p.stderr.read()
    finally: p.kill()
    p.wait()
    assert gone(marked)

def test_what_can_not_travel_is_named_first(tmp_path):
    "What can not travel is named before a process is started"
    learn = small_lm(tmp_path)
    learn.metrics = [torch.nn.Linear(2, 2).forward]
    with pytest.raises(TypeError, match='can not travel'): learn.fit_distributed(1)

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 400), min_size=8, max_size=64), st.integers(1, 8))
def test_parts_hold_each_document_once(lens, n):
    lens = np.array(lens)
    for f in (even_parts,runs):
        parts = f(lens, n)
        assert len(parts)==n and min(map(len, parts))>0
        assert sorted(np.concatenate(parts).tolist())==list(range(len(lens)))

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=3, max_size=9), st.integers(2, 3))
def test_runs_are_the_best_there_are(lens, n):
    top = np.sort(lens)[::-1]
    cuts = (c for c in combinations_with_replacement(range(1, len(top)), n-1) if len(set(c))==n-1)
    best = min(max(padded_work(o) for o in np.split(top, c)) for c in cuts)
    assert max(padded_work(np.array(lens)[p]) for p in runs(lens, n))==best
