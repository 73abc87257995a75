"A step of Adam and SGD over the parameters of the paper's language model: ours against fastai's, in one run"
import argparse,platform,sys,time
from functools import partial
from importlib.metadata import version
from pathlib import Path
import torch
from fastai.optimizer import Adam,SGD
from ulmfit_t5.core import write_json
from ulmfit_t5.train.optimizers import FusedAdam,FusedSGD

SHAPES = dict(paper=[(30_000,400),(30_000,)], compact=[(8_000,256),(8_000,)])
for k,(e,h) in dict(paper=(400,1152), compact=(256,512)).items():
    for i,o in ((e,h),(h,h),(h,e)): SHAPES[k] += [(4*o,i),(4*o,o),(4*o,),(4*o,)]

def params(size, device):
    torch.manual_seed(0)
    ps = [torch.randn(s, device=device).mul_(.1).requires_grad_() for s in SHAPES[size]]
    for p in ps: p.grad = torch.randn_like(p)*.01
    return ps

def sync(device):
    if device.type=='cuda': torch.cuda.synchronize()

def step_ms(opt_func, size, device, n):
    opt = opt_func([params(size, device)], lr=1e-3)
    for _ in range(2): opt.step()
    sync(device)
    t = time.perf_counter()
    for _ in range(n): opt.step()
    sync(device)
    return (time.perf_counter()-t)/n*1000

def row(what, ours, peer, size, device, n, reps):
    a,b = [],[]
    for i in range(reps):
        for f,ts in ((ours,a),(peer,b))[::1 if i%2 else -1]: ts.append(step_ms(f, size, device, n))
    a,b = min(a),min(b)
    print(f'{what:42} ours {a:8.2f} ms   fastai {b:8.2f} ms   {b/a:.2f} times as fast')
    return dict(what=what, ours=round(a,3), peer=round(b,3), ratio=round(b/a,3), unit='ms a step')

def machine(device):
    if device.type=='cuda': return torch.cuda.get_device_name(device)
    info = Path('/proc/cpuinfo').read_text().splitlines() if Path('/proc/cpuinfo').exists() else []
    cpu = [o.split(':')[1].strip() for o in info if o.startswith('model name')]
    return cpu[0] if cpu else platform.processor() or platform.machine()

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument('--n', type=int, default=10, help="steps in one timing")
    a.add_argument('--reps', type=int, default=5, help="timings, of which the best counts")
    a.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'optimizers.json', help="where the result is written")
    a = a.parse_args()
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    mom = dict(mom=.9)
    pairs = {'AdamW':(FusedAdam,Adam), 'SGD':(FusedSGD,SGD), 'momentum SGD':(partial(FusedSGD, **mom),partial(SGD, **mom))}
    rows = [row(f'{n} step, {s} language model', *p, s, device, a.n, a.reps) for s in SHAPES for n,p in pairs.items()]
    versions = {o:version(o) for o in ('torch','fastai')}
    info = dict(name='optimizers', rows=rows, versions=versions, cores=torch.get_num_threads(), machine=machine(device))
    write_json(a.out, info | dict(date=time.strftime('%Y-%m-%d'), command='python '+' '.join(['benchmarks/optimizers.py',*sys.argv[1:]])))
