"""What watching and steering cost: a training step with the cockpit, and with the layer board beside it, at two drawings a second, against the
same step without, in a real Jupyter kernel; and how long a command takes from the click until it is applied, which is before the next batch, of
training or of validation. Each click is listed with the phase that it fell in and the batch that was under way; every other one is aimed at a
validation, which would else see few. Blocks of steps with and without take turns in one process, and the step is the median over blocks, so that
a machine that slows down slows both."""
import json,statistics,sys
from pathlib import Path
from common import line,parser,run

KINDS = dict(plain=(), cockpit=('gauges',), both=('gauges','board_watch','layer_stats'))

CELL = """
import asyncio,json,random,statistics,time,torch
from pathlib import Path
from fastai.callback.core import Callback
from ulmfit_t5.core import seed_everything
from ulmfit_t5.all import *
from ulmfit_t5.train.steer import *
from ulmfit_t5.train.steered import *
from ulmfit_t5.widgets.board import LayerBoard
from ulmfit_t5.widgets.cockpit import *

torch.set_num_threads(cfg['threads'])
seed_everything(0)
def learner(n, valid_pct):
    df = load_dataset('dbpedia')['train'].sample(n, random_state=0)
    learn = text_classifier_learner(TextDataLoaders.from_df(df, valid_pct=valid_pct, bs=cfg['bs'], progress=False), 'awd-lstm-fwd')
    if cfg['cuda']: learn.model.cuda()
    return learn

class Clock(Callback):
    "Phase, begin and end of each batch; of a training batch the clock, the processor time and the rates too"
    order = 99
    def before_fit(self): self.at,self.cpu,self.rates,self.spans,self.phase,self.length = [],[],[],[],None,{}
    def before_train(self): self.enter('training')
    def before_validate(self): self.enter('validation')
    def enter(self, phase):
        now = time.perf_counter()
        if self.phase: self.length[self.phase] = now-self.began
        self.phase,self.began = phase,now
    def before_batch(self):
        if torch.cuda.is_available(): torch.cuda.synchronize()
        self.spans.append([self.phase, time.perf_counter(), None])
        if not self.training: return
        self.at.append(self.spans[-1][1])
        self.cpu.append(time.process_time())
        self.rates.append([h['lr'] for h in self.opt.hypers])
    def after_batch(self): self.spans[-1][2] = time.perf_counter()

class Enough(Callback):
    order = 98
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.training and self.train_iter>=self.n: learn.steering.send('stop')

learn = learner(cfg['texts'], .1)
panel,board = learn.cockpit(),LayerBoard(learn)
display(panel)
display(board)
extra = [cb for cb in learn.cbs if cb.name in kinds['both']]

async def block(names, n, seed=0):
    "Seconds and processor seconds a step; the same batches for the same seed, for their lengths differ"
    clock = Clock()
    learn.dls.train.load_state_dict(dict(seed=seed, epoch=0, pos=0))
    with learn.removed_cbs([o for o in extra if o.name not in names]), learn.no_bar(), learn.no_logging(): await learn.steer('fit', 1000, 1e-4, cbs=[clock,Enough(n+2)])
    k = len(clock.at)-2
    return dict(wall=(clock.at[-1]-clock.at[1])/k, cpu=(clock.cpu[-1]-clock.cpu[1])/k)

res = {k:[] for k in kinds}
await block((), 3)
for i in range(cfg['blocks']):
    for k in (list(kinds) if i%2==0 else reversed(list(kinds))): res[k].append(await block(kinds[k], cfg['steps'], i))

learn = learner(cfg['clicked'], .25)
panel,board = learn.cockpit(),LayerBoard(learn)
display(panel)
clock,clicks,applied = Clock(),[],[]
panel.steer.watchers.append(lambda t: t is not None and applied.append(time.perf_counter()))
async def until(f):
    while not f(): await asyncio.sleep(.002)

with learn.no_bar(), learn.no_logging():
    running = learn.steer('fit', 1000, 1e-4, cbs=clock)
    await until(lambda: len(getattr(clock, 'length', {}))==2)
    for i in range(cfg['clicks']):
        aim,other = (('training','validation') if i%2 else ('validation','training'))
        await until(lambda: clock.phase==other)
        await until(lambda: clock.phase==aim)
        await asyncio.sleep(random.uniform(0, clock.length[aim]))
        n,want,phase,t = len(applied),not panel.controls.groups[0].frozen,clock.phase,time.perf_counter()
        panel.controls.groups[0].toggle.click()
        await until(lambda: len(applied)>n)
        await until(lambda: (clock.rates[-1][0]==0)==want)
        obeyed = next(b for b,r in zip(clock.at, clock.rates) if b>=t and (r[0]==0)==want)
        _,began,ended = [o for o in clock.spans if o[1]<=t][-1]
        c = dict(phase=phase, applied=applied[n]-t, obeyed=obeyed-t, batch=ended-began if t<ended else 0)
        print(f'click {i+1:2} in {phase:10}: applied after {1e3*c["applied"]:5.0f} ms, a batch of {1e3*c["batch"]:5.0f} ms was under way; first training batch that obeys after {1e3*c["obeyed"]:5.0f} ms')
        clicks.append(c)
    running.stop()
    await running
Path(cfg['out']).write_text(json.dumps(dict(res=res, clicks=clicks, spans=clock.spans[:-1])))
"""

def in_kernel(code, secs):
    "Run a cell in a fresh Jupyter kernel"
    from jupyter_client.manager import start_new_kernel
    km,kc = start_new_kernel(kernel_name='python3', startup_timeout=300)
    try:
        said = []
        def hear(m):
            said.append(m['content'])
            if m['content'].get('name')=='stdout': print(m['content']['text'], end='', file=sys.stderr, flush=True)
        kc.execute_interactive(code, timeout=secs, output_hook=hear)
        bad = [o for o in said if 'traceback' in o]
        if bad: raise RuntimeError('\n'.join(bad[0]['traceback']))
    finally:
        kc.stop_channels()
        km.shutdown_kernel(now=True)

def measure(a):
    size = dict(texts=2000, bs=32, steps=a.steps, blocks=a.blocks, clicked=640, clicks=a.clicks)
    if a.quick: size = dict(texts=120, bs=4, steps=4, blocks=1, clicked=60, clicks=4)
    out = Path(a.tmp)/'steering.json'
    cfg = dict(size, threads=a.threads, cuda=a.device=='cuda', out=str(out))
    in_kernel(f'cfg,kinds = {cfg!r},{KINDS!r}\n{CELL}', 3000)
    return json.loads(out.read_text())

def rows(res, a):
    rounds = res['measure']
    def step(kind, key): return statistics.median(b[key] for r in rounds for b in r['res'][kind])
    def ratio(kind, key): return statistics.median(p[key]/o[key] for r in rounds for o,p in zip(r['res'][kind], r['res']['plain']))
    out = []
    for kind,what in (('cockpit','cockpit at 2 Hz'),('both','cockpit and layer board at 2 Hz')):
        for key,name in (('wall','training step'),('cpu','processor time of a step')):
            q = ratio(kind, key)
            out.append(line(f'{name}, {what}', 1e3*step(kind, key), 1e3*step('plain', key), q, 'ms', 'lower', 'without', f'{100*(1/q-1):+.2f} %'))
    clicks = [c for r in rounds for c in r['clicks']]
    for phase in ('training','validation'):
        mine,batch = [c for c in clicks if c['phase']==phase],[b-a for r in rounds for p,a,b in r['spans'] if p==phase]
        note = f'{len(mine)} clicks; a batch of {phase} takes {1e3*statistics.median(batch):.0f} ms, the longest {1e3*max(batch):.0f}'
        for f,what in ((statistics.median,'median'),(max,'slowest')):
            out.append(line(f'click during {phase} until it is applied, {what}', 1e3*f(c['applied'] for c in mine), None, None, 'ms', 'lower', '', note))
    over = max(c['applied']-c['batch'] for c in clicks)
    out.append(line('slowest click, beyond the batch that was under way', 1e3*max(0, over), None, None, 'ms', 'lower', '', 'reach: 500'))
    late = [c['obeyed'] for c in clicks if c['phase']=='validation']
    out.append(line('click during validation to the first training batch, slowest', 1e3*max(late), None, None, 'ms', 'lower', '', 'the rest of the validation'))
    return out

if __name__=='__main__':
    p = parser(__doc__)
    p.add_argument('--steps', type=int, default=40, help='of a block')
    p.add_argument('--blocks', type=int, default=6, help='of each kind')
    p.add_argument('--clicks', type=int, default=30)
    run(__file__, p.parse_args(), dict(measure=measure), rows)
