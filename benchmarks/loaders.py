"""Tokens that come out of the loaders in a second of processor time, on one core: ours against fastai's `LMDataLoader` and `SortedDL`, on the
same ids, documents of log-normal lengths. Padding is not counted; its share is reported beside."""
import time,numpy as np
from common import line,parser,run

KINDS = {'reviews of 250 tokens':250, 'questions of 12 tokens':12}

def prepare(a, tmp):
    for mean in KINDS.values(): make_corpus(tmp/f'c{mean}', 150 if a.quick else a.docs, mean, np.random.default_rng(mean))

def make_corpus(folder, n_docs, mean, rng):
    "Documents with ids of a 10,000-piece vocabulary, on disk"
    from ulmfit_t5.core import write_json
    lens = np.clip(rng.lognormal(np.log(mean)-.3, .8, n_docs), 3, 40*mean).astype(int)
    folder.mkdir()
    rng.integers(9, 10_000, lens.sum()).astype(np.uint16).tofile(folder/'ids.bin')
    np.save(folder/'offsets.npy', np.append(0, lens.cumsum()))
    write_json(folder/'meta.json', dict(dtype='uint16', tokenizer='none', n_docs=n_docs))

def rate(a, make, pad=None):
    "Million tokens a second of processor time, in the best of some epochs, padding not counted"
    def epoch():
        dl,t,n = make(),time.process_time(),0
        for b in dl: n += b[0].numel() if pad is None else int((b[0]!=pad).sum())
        return n/max(time.process_time()-t, 1e-9)/1e6
    return max(epoch() for _ in range(1 if a.quick else 3))

def ours(a):
    import torch
    from ulmfit_t5.data.batches import BucketLoader,LMLoader,TextDataset
    from ulmfit_t5.data.corpus import Corpus
    res = {}
    for name,mean in KINDS.items():
        c = Corpus(a.tmp/f'c{mean}')
        for how,s in (('shuffled',True),('in order',False)): res[f'loading batches for a language model, {name}, {how}'] = rate(a, lambda: LMLoader(c, bs=64, seq_len=72, shuffle=s, seed=0))
        make = lambda: BucketLoader(TextDataset(c, y=torch.arange(len(c))%14), bs=64, shuffle=True, seed=0, max_tokens=None)
        res |= {f'loading batches for a classifier, {name}':rate(a, make, 1), f'padding, {name}':make().padding()}
    return res

def fastai(a):
    import torch
    from fastai.data.core import Datasets
    from fastai.text.data import LMDataLoader,Pad_Chunk,SortedDL,TensorText
    from ulmfit_t5.data.corpus import Corpus
    res = {}
    for name,mean in KINDS.items():
        c = Corpus(a.tmp/f'c{mean}')
        items,lens = [TensorText(torch.from_numpy(np.array(c[i]).astype(np.int64))) for i in range(len(c))],c.lens.tolist()
        lm,kw = Datasets(items, tfms=[[]]),dict(lens=lens, bs=64, seq_len=72, num_workers=0)
        for how,s in (('shuffled',True),('in order',False)): res[f'loading batches for a language model, {name}, {how}'] = rate(a, lambda: LMDataLoader(lm, shuffle=s, **kw))
        pairs = list(zip(items, torch.arange(len(c))%14))
        make = lambda: SortedDL(pairs, res=lens, bs=64, shuffle=True, before_batch=Pad_Chunk(pad_first=False, seq_len=72), num_workers=0)
        cells = [((b[0]!=1).sum().item(),b[0].numel()) for b in make()]
        res |= {f'loading batches for a classifier, {name}':rate(a, make, 1), f'padding, {name}':1-sum(n for n,_ in cells)/sum(n for _,n in cells)}
    return res

def rows(res, a):
    keys = list(res['ours'][0])
    speed = [res.row(k, 'ours', 'fastai', k, 'million tokens/s of processor time', peer_name=f"fastai {'LMDataLoader' if k.startswith('lang') else 'SortedDL'}")
        for k in keys if not k.startswith('padding')]
    shares = [(k,res.med('ours', k),res.med('fastai', k)) for k in keys if k.startswith('padding')]
    return speed + [line(k, o, p, p/max(o, 1e-9), 'share of cells', 'lower', 'fastai SortedDL') for k,o,p in shares]

if __name__=='__main__':
    p = parser(__doc__)
    p.add_argument('--docs', type=int, default=5000, help='documents of each corpus')
    a = p.parse_args()
    a.threads = 1
    run(__file__, a, dict(ours=ours, fastai=fastai), rows, prepare)
