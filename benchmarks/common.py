"""What the benchmarks share: the machine in words, timing, rounds of fresh processes, and the file of results.

Every side of a comparison is a job: a function that runs alone in a fresh process and returns numbers. The jobs take turns (A B C, then
C B A, ...), so that settings of one never reach another and a machine that slows down slows all. The ratio is the median over rounds."""
import argparse,datetime,json,os,platform,statistics,subprocess,sys,tempfile,time
from importlib.metadata import PackageNotFoundError,version
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = ('ulmfit_t5','torch','fastai','fastcore','sentencepiece','spacy','numpy','pandas')

def n_cores():
    "Cores this process may use"
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1

def cpu_info(name):
    "Value of a line of /proc/cpuinfo"
    try: lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError: return ''
    return next((o.split(':', 1)[1].strip() for o in lines if o.startswith(name)), '')

def machine(device='cpu'):
    "Processor, what it computes natively, cores and memory; the GPU if that is what ran"
    flags = set(cpu_info('flags').split())
    has = [s for f,s in (('avx2','AVX2'),('avx512f','AVX-512'),('avx512_bf16','AVX-512 bf16'),('amx_bf16','AMX bf16'),('amx_int8','AMX int8')) if f in flags]
    mem = os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')/2**30 if hasattr(os, 'sysconf') else 0
    cpu = cpu_info('model name') or platform.processor() or platform.machine()
    s = f"{cpu} ({', '.join(has) or 'no flags known'}), {os.cpu_count()} cores, {mem:.0f} GB, {platform.system()}, Python {platform.python_version()}"
    if device!='cuda': return s
    import torch
    return f'{torch.cuda.get_device_name(0)}, {s}'

def versions():
    "Versions of the packages that matter here"
    def v(o):
        try: return version(o)
        except PackageNotFoundError: return None
    return {o:s for o in PACKAGES if (s:=v(o))}

def sync(device='cpu'):
    if device!='cuda': return
    import torch
    torch.cuda.synchronize()

def timed(f, n=3, warm=1, device='cpu', clock=time.perf_counter):
    "Median seconds of `f()` by `clock`, after `warm` calls that do not count"
    for _ in range(warm): f()
    ts = []
    for _ in range(n):
        sync(device)
        t = clock()
        f()
        sync(device)
        ts.append(clock()-t)
    return statistics.median(ts)

def matmul_rate(dtype, n=2048, reps=5, device='cpu'):
    "Floating-point operations a second that a square matrix product reaches here: the best of `reps`"
    import torch
    a,b = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
    return 2*n**3/min(timed(lambda: a@b, 1, int(i==0), device) for i in range(reps))

def parser(doc):
    "Options that every benchmark has"
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--quick', action='store_true', help='a trial in seconds on small models: its figures mean nothing and are not kept')
    p.add_argument('--threads', type=int, default=n_cores(), help='threads of each process; one a core by default')
    p.add_argument('--rounds', type=int, default=0, help='turns of each job; 3 by default, 1 with --quick')
    p.add_argument('--device', default='cpu', choices=('cpu','cuda'), help='where the models run')
    p.add_argument('--out', type=Path, help='file of results; benchmarks/results/NAME.json by default, none with --quick')
    p.add_argument('--job', help=argparse.SUPPRESS)
    p.add_argument('--tmp', type=Path, help=argparse.SUPPRESS)
    return p

def spawn(script, job, a, tmp):
    "Run one job in a fresh process and return its numbers"
    cmd = [sys.executable,script,'--job',job,'--tmp',tmp,*sys.argv[1:]]
    env = os.environ | dict(OMP_NUM_THREADS=str(a.threads), MKL_NUM_THREADS=str(a.threads), TOKENIZERS_PARALLELISM='false')
    r = subprocess.run([str(o) for o in cmd], env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    found = [l[7:] for l in r.stdout.splitlines() if l.startswith('RESULT ')]
    if r.returncode or not found: raise RuntimeError(f'the job {job!r} of {script} ended with {r.returncode}:\n{r.stdout[-2000:]}{r.stderr[-4000:]}')
    return json.loads(found[-1])

def in_place(job, a, tmp):
    "Run one job in this process: for trials, where a fresh process would take longer than the job"
    import torch
    torch.set_num_threads(a.threads)
    return json.loads(json.dumps(job(argparse.Namespace(**vars(a)|dict(tmp=Path(tmp))))))

class Results(dict):
    "Numbers by job: a list of what each round gave"
    def med(self, job, key): return statistics.median(r[key] for r in self[job])
    def row(self, what, job, peer, key, unit, better='higher', peer_name=None, peer_key=None, note=''):
        "Medians of ours and the peer, and how many times better ours is: the median of the ratios of the rounds"
        pairs = [(o[key],p[peer_key or key]) for o,p in zip(self[job], self[peer])]
        ratio = statistics.median((o/p if better=='higher' else p/o) if o and p else 0. for o,p in pairs)
        return line(what, self.med(job, key), self.med(peer, peer_key or key), ratio, unit, better, peer_name or peer, note)

def line(what, ours, peer, ratio, unit, better='higher', peer_name='', note=''):
    "One row of the results, which is printed as well"
    sig = lambda x: None if x is None else float(f'{x:.4g}')
    r = dict(what=what, ours=sig(ours), peer=sig(peer), peer_name=peer_name, ratio=sig(ratio), unit=unit, better=better, note=note)
    side = '' if peer is None else f'   {peer_name} {r["peer"]:g}'
    print(f'{what:60} ours {r["ours"]:g}{side} {unit}' + ('' if ratio is None else f'   ratio {r["ratio"]:g}') + (f'   ({note})' if note else ''), flush=True)
    return r

def run(script, a, jobs, rows, prepare=None):
    "The whole of a benchmark: in a child process its one job, else all jobs in turns, then `rows(results, a)` to table and file"
    import torch
    if a.device=='cuda' and not torch.cuda.is_available(): raise SystemExit('--device cuda: this machine has no CUDA device that PyTorch can use')
    if a.job:
        torch.set_num_threads(a.threads)
        return print('RESULT '+json.dumps(jobs[a.job](a)))
    began,name = time.time(),Path(script).stem
    res = Results({j:[] for j in jobs})
    with tempfile.TemporaryDirectory(prefix=f'bench_{name}_') as tmp:
        if prepare: prepare(a, Path(tmp))
        for i in range(a.rounds or (1 if a.quick else 3)):
            for j in (jobs if i%2==0 else reversed(list(jobs))): res[j].append(in_place(jobs[j], a, tmp) if a.quick else spawn(script, j, a, tmp))
    return write(name, a, rows(res, a), time.time()-began)

def write(name, a, rows, took):
    "Results as JSON, unless this was a trial"
    words = ' '.join(o for i,o in enumerate(sys.argv[1:]) if o!='--out' and sys.argv[i]!='--out')
    d = dict(name=name, command=f'python benchmarks/{name}.py {words}'.strip(), date=datetime.date.today().isoformat(), machine=machine(a.device),
        cores=n_cores(), threads=a.threads, seconds=round(took), quick=a.quick, versions=versions(), rows=rows)
    out = a.out or (None if a.quick else HERE/'results'/f'{name}.json')
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(d, indent=1, ensure_ascii=False)+'\n', encoding='utf8')
    print(f'{took:.0f} s on {d["machine"]}; ' + (f'written to {out}' if out else 'a trial: nothing is kept'))
    return d

def at_sizes(f, sizes, bf16):
    "A job that runs `f(a, size, bf16)` at each size, and measures the matrix products of this machine beside it"
    def go(a):
        n,reps = (256,2) if a.quick else (2048,5)
        return {k:f(a, s, bf16) for k,s in sizes.items()} | {dt:matmul_rate(dt, n, reps, a.device) for dt in ('float32','bfloat16')}
    return go

def in_precisions(a, sizes, ours, peer, name):
    "Jobs of both sides in float32, and in bfloat16 where this machine has it"
    from ulmfit_t5.core import bf16_fast
    kinds = [('fp32',False),('bf16',True)][:1+(bf16_fast(a.device) or a.quick)]
    return {f'{who} {dt}':at_sizes(f, sizes, bf16) for dt,bf16 in kinds for who,f in (('ours',ours),(name,peer))}

def matmul_share(res, what, size, job, peer, flop, dtype):
    "Row that says which share of the rate of a matrix product both sides reach; `flop` operations a unit of work"
    top = max(r[dtype] for v in res.values() for r in v)
    us,them = (flop*res.med(o, size)/top for o in (job,peer))
    return line(f'share of the {dtype} matmul rate, {what}', us, them, us/them, 'of 1', 'higher', peer, f'a matrix product reaches {top/1e9:.0f} GFLOP/s; {flop/1e6:.0f} MFLOP a token')

def review_texts(n, least=100):
    "`n` film reviews with labels (IMDb in `$ULMFIT_T5_DATA`), else as many documents put together from the bundled DBpedia texts, and their name"
    import pandas as pd
    from ulmfit_t5.core import bundled,data_home
    imdb = (data_home() or HERE)/'imdb'/'train.csv.xz'
    if imdb.exists():
        df = pd.read_csv(imdb, nrows=None if n>2000 else 25_000).sample(min(n, 25_000), random_state=42)
        return df.text.tolist(),df.label.tolist(),'IMDb reviews'
    df = pd.read_csv(bundled('dbpedia14')/'train.csv.xz')
    k = [2+i%7 for i in range(n)] # so many to a document: lengths as uneven as those of reviews
    rows = [df.sample(o, random_state=i) for i,o in enumerate(k)]
    return [' '.join(o.text) for o in rows],[o.label.iloc[0] for o in rows],'DBpedia texts put together'

if __name__=='__main__':
    print(machine())
    print(', '.join(f'{k} {v}' for k,v in versions().items()))
    for dt in ('float32','bfloat16'): print(f'{dt:9} {matmul_rate(dt)/1e9:8.0f} GFLOP/s in a matrix product')
