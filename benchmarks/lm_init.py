"Loss of a compact language model over its first steps: our start of the weights against PyTorch's, on the same text and steps"
import statistics
from common import line,parser,run

STEPS = 200

def pytorch_start(lm):
    "Weights as `nn.LSTM` begins, the embedding as AWD-LSTM's"
    import torch
    with torch.no_grad():
        lm.encoder.embed.weight.uniform_(-.1, .1)
        for layer in lm.encoder.layers:
            for p in layer.parameters(): p.uniform_(-layer.n_out**-.5, layer.n_out**-.5)

def train(a, start):
    "Training loss of each step"
    import numpy as np,torch
    from ulmfit_t5.core import bf16_fast,keep_freed_memory,seed_everything
    from ulmfit_t5.data.datasets import load_dataset
    from ulmfit_t5.data.tokenizer import bundled_tokenizer
    from ulmfit_t5.models.awd_lstm import COMPACT_LM,LMLoss,language_model,scale_dropouts
    from ulmfit_t5.pretrain import Windows
    keep_freed_memory()
    seed_everything(0)
    tok,steps = bundled_tokenizer(),4 if a.quick else STEPS
    windows = Windows(np.concatenate(tok.encode_batch(load_dataset('dbpedia')['train'].text[:6000 if not a.quick else 300])), 32, 70)
    lm = language_model(len(tok), scale_dropouts(COMPACT_LM, 0.))
    if start: start(lm)
    loss,opt,res = LMLoss(lm),torch.optim.AdamW(lm.parameters(), betas=(.9,.99), weight_decay=.01, fused=True),[]
    for i in range(steps):
        x,y = windows[i]
        for g in opt.param_groups: g['lr'] = 2e-3*min(1, (i+1)/40)
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16_fast()): l = loss(lm(x), y)
        l.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), .5)
        opt.step()
        opt.zero_grad()
        res.append(l.item())
    return dict(losses=res)

def rows(res, a):
    "Mean loss of the ten steps before each quarter of the run"
    ours,peer = (res[k][0]['losses'] for k in ('ours','pytorch'))
    n = len(ours)
    mean = lambda l,i: statistics.mean(l[max(0, i-10):i])
    return [line(f'training loss after {i} steps', mean(ours, i), mean(peer, i), mean(peer, i)/mean(ours, i), 'nats a token', 'lower', "PyTorch's start")
        for i in range(max(1, n//4), n+1, max(1, n//4))]

if __name__=='__main__':
    a = parser(__doc__).parse_args()
    a.rounds = a.rounds or 1
    run(__file__, a, dict(ours=lambda a: train(a, None), pytorch=lambda a: train(a, pytorch_start)), rows)
