"""Span corruption (density 0.15, mean span 3), raw tokens a second on one core, from the same rows: whole batches at once, and one row after the other.

The peer is written here after the published algorithm: what the widely used NumPy collators do, which draw each row's mask with a shuffled indicator, then turn
masks into sentinels and leave out what they hide, row by row. Before anything is timed, both make the same input and target from the same mask."""
import time,numpy as np
from common import line,parser,run
from ulmfit_t5.data.objectives import SpecialIds,objective

SHAPES = {'128 rows of 568 tokens':(128,568,512), '32 rows of 284 tokens':(32,284,256), '128 rows of 1137 tokens':(128,1137,1024)}
OTHERS = 'iid_15_u_u','bert','drop_tokens','prefix_lm','ul2'
VOCAB = 32_100

def noise_mask(n, density, mean, rng):
    "Mask of one row: random parts of noise and of the rest, laid alternately"
    noise = min(max(int(round(n*density)), 1), n-1)
    spans = max(1, int(round(noise/mean)))
    def parts(total):
        first = np.arange(total-1)<spans-1
        rng.shuffle(first)
        return np.bincount(np.cumsum(np.append(False, first)), minlength=spans)
    both = np.stack([parts(n-noise),parts(noise)], 1).reshape(-1)
    starts = np.zeros(n, dtype=np.int64)
    starts[np.cumsum(both)[:-1]] = 1
    return np.cumsum(starts)%2==1

def with_sentinels(row, mask):
    "One row, each run of noise a sentinel, and the end"
    first = mask & ~np.append(False, mask[:-1])
    ids = np.where(first, VOCAB-np.cumsum(first), np.where(mask, -1, row))
    return np.append(ids[ids>=0], 1)

def peer_batch(rows, rng):
    masks = [noise_mask(len(r), .15, 3., rng) for r in rows]
    return np.stack([with_sentinels(r, m) for r,m in zip(rows, masks)]),np.stack([with_sentinels(r, ~m) for r,m in zip(rows, masks)])

sp = SpecialIds(VOCAB, eos_id=1, pad_id=0, first=3)
def make_rows(shape): return np.random.default_rng(0).integers(3, VOCAB-100, shape)
def our_batch(rows, rng, name='span_3_15_u_u'): return [o.padded(0) for o in objective(name)(rows, sp, rng)]

def same_answers():
    "Both sides, from the same mask"
    rng = np.random.default_rng(1)
    rows = make_rows((8,568))
    masks = [noise_mask(568, .15, 3., rng) for _ in rows]
    ours = objective('span_3_15_u_u').apply(rows, np.concatenate(masks), sp)
    for o,m in zip(ours, (masks,[~m for m in masks])): np.testing.assert_array_equal(o.padded(0), np.stack([with_sentinels(r, k) for r,k in zip(rows, m)]))

def rate(f, rows, least):
    "Million raw tokens a second of processor time"
    rng,n = np.random.default_rng(2),0
    f(rows, rng)
    t = time.process_time()
    while (took := time.process_time()-t)<least: n += f(rows, rng)[0].shape[0]*rows.shape[1]
    return n/took/1e6

def job(f, others=()):
    def _inner(a):
        least = .05 if a.quick else 2
        same_answers()
        r = {k:rate(f, make_rows((b,n)), least) for k,(b,n,_) in SHAPES.items()}
        return r | {o:rate(lambda x,g,o=o: our_batch(x, g, o), make_rows((128,512)), least) for o in others}
    return _inner

def rows(res, a):
    out = [res.row(f'span corruption, {k}', 'ours', 'row by row', k, 'million tokens a second', note=f'inputs of {n}') for k,(_,_,n) in SHAPES.items()]
    return out + [line(f'{o}, 128 rows of 512 tokens', res.med('ours', o), None, None, 'million tokens a second') for o in OTHERS]

if __name__=='__main__':
    a = parser(__doc__).parse_args()
    a.threads = 1
    run(__file__, a, {'ours':job(our_batch, OTHERS),'row by row':job(peer_batch)}, rows)
