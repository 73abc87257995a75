"""How evenly 2, 4 and 8 processes work on one epoch of reviews: mean over largest work of a step, averaged over steps.

A simulation: the lengths are those of the tokenised texts, and each side's own code decides which process gets which texts. Ours splits each batch,
fastai's `DistributedDL` cuts the order of its `SortedDL`, transformers has `BatchRebalanceSampler`. Every process has 64 texts a step, so that the steps
are as many. Work is counted in tokens, and in cells of the padded rectangle. The time of an epoch is the sum of the largest rectangles of all steps."""
import time
import numpy as np,torch
from fastai.text.data import SortedDL
from common import line,parser,review_texts,write
from ulmfit_t5.core import seed_everything
from ulmfit_t5.data.batches import BucketLoader
from ulmfit_t5.data.corpus import tokenize_corpus
from ulmfit_t5.data.documents import TextDataset
from ulmfit_t5.data.sharding import balance,padded_work
from ulmfit_t5.data.tokenizer import bundled_tokenizer

BS,RANKS,REACH = 64,(2,4,8),{2:.99,4:.98,8:.96}

def ours(corpus, n, bs):
    "Documents of each rank, step by step; `bs` documents of all ranks together"
    dl = BucketLoader(TextDataset(corpus), bs=bs, shuffle=True, seed=0, max_tokens=None)
    return list(zip(*[dl.shard(r, n).make_plan(1) for r in range(n)]))

def fastai_slices(corpus, n, bs):
    from fastai.distributed import DistributedDL
    seed_everything(0)
    lens = corpus.lens.tolist()
    dl = SortedDL([(torch.zeros(1),)]*len(lens), res=lens, bs=bs//n, shuffle=True, num_workers=0)
    order = list(dl.get_idxs())
    class Rank(DistributedDL):
        def _broadcast(self, t, rank): return order # what rank 0 would send
    ranks = [np.array(Rank(dl, r, n).get_idxs()) for r in range(n)]
    return list(zip(*[np.split(o, range(bs//n, len(o), bs//n)) for o in ranks]))

def transformers_rebalance(corpus, n, bs):
    from transformers.trainer_pt_utils import BatchRebalanceSampler
    make = lambda r: BatchRebalanceSampler(corpus.lens.tolist(), bs, n, 1, seed=0, rank=r, drop_last=False)
    return list(zip(*[[np.array(b) for b in make(r)] for r in range(n)]))

def figures(steps, lens):
    cells = np.array([[padded_work(lens[d]) for d in s] for s in steps])
    return dict(tokens=balance([[lens[d].sum() for d in s] for s in steps]), cells=balance(cells), time=cells.max(1).sum()/1e6,
        seen=sum(len(d) for s in steps for d in s))

def main(a):
    began = time.time()
    texts,_,name = review_texts(400 if a.quick else 25_000)
    corpus = tokenize_corpus(texts, bundled_tokenizer(), progress=False)
    sides = {'fastai DistributedDL':fastai_slices, 'transformers batch_rebalance':transformers_rebalance}
    rows = []
    for n in RANKS:
        mine,lens = figures(ours(corpus, n, n*BS), corpus.lens),corpus.lens
        for peer,f in sides.items():
            o = figures(f(corpus, n, n*BS), lens)
            for k,what in (('tokens','tokens'),('cells','padded cells')):
                rows.append(line(f'{what} shared among {n} processes, mean over busiest', mine[k], o[k], mine[k]/o[k], 'of 1', 'higher', peer,
                    f'{name}, {BS} texts a process; to reach {REACH[n]}; texts read {mine["seen"]:,} and {o["seen"]:,} of {len(lens):,}'))
            rows.append(line(f'an epoch shared among {n} processes', mine['time'], o['time'], o['time']/mine['time'], 'million cells of the slowest', 'lower', peer))
        one = figures(ours(corpus, n, BS), lens)
        rows.append(line(f'tokens of a batch of {BS} shared among {n} processes, mean over busiest', one['tokens'], None, None, 'of 1', note=f'by padded cells {one["cells"]:.4f}'))
    return write('rank_balance', a, rows, time.time()-began)

if __name__=='__main__': main(parser(__doc__).parse_args())
