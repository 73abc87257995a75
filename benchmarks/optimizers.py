"A step of Adam and of SGD over the parameters of the paper's and of the compact language model: ours against fastai's"
from functools import partial
from common import parser,run,timed

def shapes(vocab, e, h):
    "Those of a tied language model with three LSTM layers"
    res = [(vocab,e),(vocab,)]
    for i,o in ((e,h),(h,h),(h,e)): res += [(4*o,i),(4*o,o),(4*o,),(4*o,)]
    return res

def sizes(a): return dict(tiny=shapes(500, 16, 24)) if a.quick else dict(paper=shapes(30_000, 400, 1152), compact=shapes(8_000, 256, 512))

def params(ss, device):
    import torch
    torch.manual_seed(0)
    ps = [torch.randn(s, device=device).mul_(.1).requires_grad_() for s in ss]
    for p in ps: p.grad = torch.randn_like(p)*.01
    return ps

def job(side):
    "Milliseconds a step of each optimiser at each size"
    def go(a):
        if side=='ours': from ulmfit_t5.train.optimizers import FusedAdam as Adam,FusedSGD as SGD
        else: from fastai.optimizer import Adam,SGD
        opts = {'AdamW':Adam, 'SGD':SGD, 'momentum SGD':partial(SGD, mom=.9)}
        def ms(f, ss): return 1000*timed(f([params(ss, a.device)], lr=1e-3).step, 2 if a.quick else a.n, 2, a.device)
        return {f'{n} update of a language model of {s} size':ms(f, ss) for s,ss in sizes(a).items() for n,f in opts.items()}
    return go

def rows(res, a): return [res.row(k, 'ours', 'fastai', k, 'ms a step', 'lower') for k in res['ours'][0]]

if __name__=='__main__':
    p = parser(__doc__)
    p.add_argument('--n', type=int, default=15, help='steps that are timed, of which the median counts')
    run(__file__, p.parse_args(), dict(ours=job('ours'), fastai=job('fastai')), rows)
