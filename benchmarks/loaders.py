"Tokens a second that come out of the loaders, on one core: ours against fastai's `LMDataLoader` and `SortedDL`, on the same ids, in one run"
import argparse,platform,sys,tempfile,time
from importlib.metadata import version
from pathlib import Path
import numpy as np,torch
from fastai.data.core import Datasets
from fastai.text.data import LMDataLoader,Pad_Chunk,SortedDL,TensorText
from ulmfit_t5.core import write_json
from ulmfit_t5.data.corpus import Corpus
from ulmfit_t5.data.batches import BucketLoader,LMLoader,TextDataset

def make_corpus(folder, n_docs, mean, rng):
    "Documents of log-normal lengths and ids of a 10,000-piece vocabulary, on disk"
    lens = np.clip(rng.lognormal(np.log(mean)-.3, .8, n_docs), 3, 40*mean).astype(int)
    ids = rng.integers(9, 10_000, lens.sum()).astype(np.uint16)
    folder.mkdir()
    ids.tofile(folder/'ids.bin')
    np.save(folder/'offsets.npy', np.append(0, lens.cumsum()))
    write_json(folder/'meta.json', dict(dtype='uint16', tokenizer='none', n_docs=n_docs))
    return Corpus(folder)

def rate(dl, pad=None):
    "Million tokens a second of processor time in one epoch, padding not counted"
    t,n = time.process_time(),0
    for b in dl: n += b[0].numel() if pad is None else int((b[0]!=pad).sum())
    return n/(time.process_time()-t)/1e6

def row(what, ours, peer, reps):
    pairs = [(ours(),peer()) for _ in range(reps)]
    a,b = (max(o) for o in zip(*pairs))
    print(f'{what:44} ours {a:7.2f}   fastai {b:7.2f} M tokens/s   {a/b:.1f} times as fast')
    return dict(what=what, ours=round(a,3), peer=round(b,3), ratio=round(a/b,3), unit='million tokens a second of processor time')

def share(what, ours, peer):
    print(f'{what:44} ours {ours:7.1%}   fastai {peer:7.1%}')
    return dict(what=what, ours=round(ours,4), peer=round(peer,4), ratio=round(ours/peer,3), unit='share of cells')

def rows(c, name, reps):
    items = [TensorText(torch.from_numpy(np.array(c[i]).astype(np.int64))) for i in range(len(c))]
    ys,lens = torch.arange(len(c))%14,c.lens.tolist()
    lm = Datasets(items, tfms=[[]])
    out = [row(f'language model, {name}, {how}', lambda s=s: rate(LMLoader(c, bs=64, seq_len=72, shuffle=s, seed=0)),
        lambda s=s: rate(LMDataLoader(lm, lens=lens, bs=64, seq_len=72, shuffle=s, num_workers=0)), reps) for how,s in (('shuffled',True),('in order',False))]
    pairs = list(zip(items, ys))
    peer = lambda: SortedDL(pairs, res=lens, bs=64, shuffle=True, before_batch=Pad_Chunk(pad_first=False, seq_len=72), num_workers=0)
    mine = lambda: BucketLoader(TextDataset(c, y=ys), bs=64, shuffle=True, seed=0, max_tokens=None)
    out.append(row(f'classifier, {name}', lambda: rate(mine(), 1), lambda: rate(peer(), 1), reps))
    cells = [((b[0]!=1).sum().item(),b[0].numel()) for b in peer()]
    return out + [share(f'padding, {name}', mine().padding(), 1-sum(a for a,_ in cells)/sum(n for _,n in cells))]

def machine():
    p = Path('/proc/cpuinfo')
    cpu = [o.split(':')[1].strip() for o in p.read_text().splitlines() if o.startswith('model name')] if p.exists() else []
    return cpu[0] if cpu else platform.processor() or platform.machine()

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__)
    a.add_argument('--reps', type=int, default=3, help="timings, of which the best counts")
    a.add_argument('--docs', type=int, default=5000, help="documents of each corpus")
    a.add_argument('--out', type=Path, default=Path(__file__).parent/'results'/'loaders.json', help="where the result is written")
    a = a.parse_args()
    torch.set_num_threads(1)
    rng,found = np.random.default_rng(0),[]
    with tempfile.TemporaryDirectory() as d:
        for name,mean in (('reviews of 250 tokens',250),('questions of 12 tokens',12)): found += rows(make_corpus(Path(d)/f'c{mean}', a.docs, mean, rng), name, a.reps)
    info = dict(name='loaders', rows=found, versions={o:version(o) for o in ('torch','fastai','numpy')}, cores=1, machine=machine())
    write_json(a.out, info | dict(date=time.strftime('%Y-%m-%d'), command=' '.join(['python benchmarks/loaders.py',*sys.argv[1:]])))
