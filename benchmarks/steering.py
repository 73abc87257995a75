"""What watching and steering cost: a training step with the cockpit, and with the layer board beside it, at two drawings a second, against the
same step without, in a real Jupyter kernel; and how long a command takes from the click to the first batch that obeys. Blocks of steps with and
without take turns in one process, and the step is the median over blocks, so that a machine that slows down slows both."""
import json,statistics
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
df = load_dataset('dbpedia')['train'].sample(cfg['texts'], random_state=0)
learn = text_classifier_learner(TextDataLoaders.from_df(df, valid_pct=.1, bs=cfg['bs'], progress=False), 'awd-lstm-fwd')
if cfg['cuda']: learn.model.cuda()
panel,board = learn.cockpit(),LayerBoard(learn)
display(panel)
display(board)

class Clock(Callback):
    "When each batch began, by the clock and in processor time, and at which rates it was taken"
    order = 99
    def before_fit(self): self.at,self.cpu,self.rates = [],[],[]
    def before_batch(self):
        if not self.training: return
        if torch.cuda.is_available(): torch.cuda.synchronize()
        self.at.append(time.perf_counter())
        self.cpu.append(time.process_time())
        self.rates.append([h['lr'] for h in self.opt.hypers])

class Enough(Callback):
    order = 98
    def __init__(self, n): self.n = n
    def after_batch(self):
        if self.training and self.train_iter>=self.n: learn.steering.send('stop')

extra = [cb for cb in learn.cbs if cb.name in kinds['both']]

async def block(names, n):
    "Seconds and processor seconds a step"
    clock = Clock()
    with learn.removed_cbs([o for o in extra if o.name not in names]), learn.no_bar(), learn.no_logging(): await learn.steer('fit', 1000, 1e-4, cbs=[clock,Enough(n+2)])
    k = len(clock.at)-2
    return dict(wall=(clock.at[-1]-clock.at[1])/k, cpu=(clock.cpu[-1]-clock.cpu[1])/k)

res = {k:[] for k in kinds}
await block((), 3)
for i in range(cfg['blocks']):
    for k in (list(kinds) if i%2==0 else reversed(list(kinds))): res[k].append(await block(kinds[k], cfg['steps']))

clock,lags = Clock(),[]
with learn.no_bar(), learn.no_logging():
    running = learn.steer('fit', 1000, 1e-4, cbs=clock)
    while not getattr(clock, 'at', []): await asyncio.sleep(.01)
    for i in range(cfg['clicks']):
        await asyncio.sleep(random.uniform(.1, cfg['pause']))
        want = not panel.controls.groups[0].frozen
        t = time.perf_counter()
        panel.controls.groups[0].toggle.click()
        while (clock.rates[-1][0]==0)!=want: await asyncio.sleep(.001)
        lags.append(clock.at[next(i for i,r in enumerate(clock.rates) if clock.at[i]>=t and (r[0]==0)==want)]-t)
        await asyncio.sleep(.05)
    running.stop()
    await running
Path(cfg['out']).write_text(json.dumps(dict(res=res, lags=lags, wall=statistics.median(o['wall'] for o in res['cockpit']))))
"""

def in_kernel(code, secs):
    "Run a cell in a fresh Jupyter kernel"
    from jupyter_client.manager import start_new_kernel
    km,kc = start_new_kernel(kernel_name='python3', startup_timeout=300)
    try:
        said = []
        kc.execute_interactive(code, timeout=secs, output_hook=lambda m: said.append(m['content']))
        bad = [o for o in said if 'traceback' in o]
        if bad: raise RuntimeError('\n'.join(bad[0]['traceback']))
    finally:
        kc.stop_channels()
        km.shutdown_kernel(now=True)

def measure(a):
    size = dict(texts=120, bs=4, steps=4, blocks=1, clicks=2, pause=.2) if a.quick else dict(texts=2000, bs=32, steps=40, blocks=6, clicks=20, pause=2.)
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
    lags = sorted(x for r in rounds for x in r['lags'])
    wall = statistics.median(r['wall'] for r in rounds)
    for v,what in ((statistics.median(lags),'median'),(lags[-1],'slowest')):
        out.append(line(f'click to the batch that obeys, {what}', 1e3*v, None, None, 'ms', 'lower', '', f'{v/wall:.2f} steps; {len(lags)} clicks at random moments'))
    return out

if __name__=='__main__':
    a = parser(__doc__).parse_args()
    run(__file__, a, dict(measure=measure), rows)
