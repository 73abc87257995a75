"""Share of cells that hold no token, packed and unpacked, and how fast rows are packed.

Pretraining: span corruption of a tokenised corpus, rows filled by the length formula, against documents that each have rows of their own. Pairs: (text, label)
examples in rows of 512 and 128, several to a row, against one example to a row, padded to the longest of a batch, shuffled (as collators do) and in buckets."""
import time,numpy as np
from common import line,parser,review_texts,run
from ulmfit_t5.data.batches import MemoryCorpus
from ulmfit_t5.data.noise import Ragged
from ulmfit_t5.data.objectives import SpecialIds,objective
from ulmfit_t5.data.packing import DenoisingLoader,PackedDenoisingLoader,PairLoader
from ulmfit_t5.data.tokenizer import bundled_tokenizer

def documents(a):
    "Ids of documents, numbers of their classes, and where they come from"
    texts,labels,name = review_texts(300 if a.quick else 5000)
    return [np.append(o, tok.eos_id) for o in tok.encode_batch(texts)],np.unique(labels, return_inverse=True)[1],name

tok = bundled_tokenizer()
sp = SpecialIds.of(tok)
def share(batches): return 1-sum((b!=tok.pad_id).sum().item() for b in batches)/sum(b.numel() for b in batches)

def pretraining(docs):
    "Share of padding of whole epochs of inputs and targets together"
    dl,raw = DenoisingLoader(MemoryCorpus(docs), 'span_3_15_u_u', sp, bs=16, seed=0),objective('span_3_15_u_u').raw_length(512)
    whole = share([o for b in dl for o in b])
    apart = share([o for b in PackedDenoisingLoader(MemoryCorpus(docs), 'span_3_15_u_u', sp, bs=16, seed=0) for o in b[:2]])
    own = [d[i:i+raw] for d in docs for i in range(0, len(d), raw)]
    x,y = objective('span_3_15_u_u')(Ragged.of(own), sp, 0)
    return whole,apart,1-(x.lens.sum()+y.lens.sum())/(len(own)*(512+y.lens.max()))

def pairs(docs, labels):
    "Shares of padding of inputs: packed, in buckets, and shuffled; examples a second of processor time of packing"
    ys = [[100+o,tok.eos_id] for o in labels]
    make = lambda pack: PairLoader(docs, ys, 512, 128, bs=16, pack=pack, shuffle=True, seed=0, eos_id=tok.eos_id)
    t,dl = time.process_time(),make(True)
    len(dl)
    took = time.process_time()-t
    lens = np.random.default_rng(0).permutation(dl.x.lens)
    mixed = 1-lens.sum()/sum(len(b)*b.max() for b in np.split(lens, range(16, len(lens), 16)))
    return dl.padding()[0],make(False).padding()[0],mixed,len(docs)/took,lens.sum()/took/1e6

def measure(a):
    docs,labels,name = documents(a)
    whole,apart,own = pretraining(docs)
    packed,buckets,mixed,speed,tokens = pairs(docs, labels)
    return dict(whole=whole, apart=apart, own=own, packed=packed, buckets=buckets, mixed=mixed, speed=speed, tokens=tokens, name=name)

def rows(res, a):
    r = res['all'][0]
    def row(what, ours, peer, peer_name):
        ratio = r[peer]/r[ours] if r[ours] else None # nothing at all is left: there is no such number of times
        return line(what, r[ours], r[peer] if ratio else None, ratio, 'share of cells', 'lower', peer_name if ratio else '',
            r['name'] if ratio else f"{r['name']}; {peer_name}: {r[peer]:.4g}")
    return [row('padding in pretraining, inputs and targets', 'whole', 'own', 'rows of their own for each document'),
        row('the same, documents kept apart by segments', 'apart', 'own', 'rows of their own for each document'),
        row('padding of inputs, packed', 'packed', 'mixed', 'one to a row, shuffled'), row('padding of inputs, packed, against buckets', 'packed', 'buckets', 'one to a row, in buckets'),
        line('examples packed a second', r['speed'], None, None, 'examples a second', note=r['name']),
        line('tokens packed a second', r['tokens'], None, None, 'million tokens a second', note=r['name'])]

if __name__=='__main__':
    a = parser(__doc__).parse_args()
    a.rounds = a.rounds or 1
    run(__file__, a, {'all':measure}, rows)
