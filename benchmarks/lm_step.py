"""A training step of the language model: forward, loss with AR and TAR, backward, clip, Adam. Ours in float32 and bfloat16 against
fastai's get_language_model(AWD_LSTM) with its Adam and its RNNRegularizer's formula, on the same batches."""
import statistics,time
from common import in_precisions,matmul_share,parser,run,sync

SIZES = dict(compact=dict(emb_sz=256, n_hid=512, vocab=10_000), paper=dict(emb_sz=400, n_hid=1152, vocab=30_000))
TINY = dict(compact=dict(emb_sz=32, n_hid=48, vocab=500), paper=dict(emb_sz=48, n_hid=64, vocab=800))
ALPHA,BETA,CLIP,LR = 2.,1.,.4,1e-3

def setting(a): return (TINY,8,20,1) if a.quick else (SIZES,64,70,2)

def work(emb_sz, n_hid, vocab):
    "Multiplications and additions a token: two in forward and four in backward for each weight of the layers and the softmax"
    widths = [emb_sz,n_hid,n_hid,emb_sz]
    return 6*(sum(4*o*(i+o) for i,o in zip(widths, widths[1:])) + vocab*emb_sz)

def batches(vocab, bs, t, n):
    "Token ids as unevenly frequent as words are"
    import torch
    torch.manual_seed(0)
    p = 1/torch.arange(10, vocab+10).float()
    ids = torch.multinomial(p, bs*(t*n+1), replacement=True).view(bs, -1)
    return [(ids[:,i*t:(i+1)*t],ids[:,i*t+1:(i+1)*t+1]) for i in range(n)]

def measure(step, a, vocab):
    "Tokens a second: the median over steps after the first"
    _,bs,t,n = setting(a)
    secs = []
    for x,y in batches(vocab, bs, t, n+1):
        x,y = x.contiguous().to(a.device),y.contiguous().to(a.device)
        sync(a.device)
        s = time.perf_counter()
        step(x, y)
        sync(a.device)
        secs.append(time.perf_counter()-s)
    return bs*t/statistics.median(secs[1:])

def regularized(loss, dropped, raw):
    "fastai's RNNRegularizer"
    return loss + ALPHA*dropped.float().pow(2).mean() + BETA*(raw[:,1:]-raw[:,:-1]).float().pow(2).mean()

def ours(a, size, bf16):
    import torch
    from ulmfit_t5.core import keep_freed_memory
    from ulmfit_t5.models.awd_lstm import AWD_LSTM_LM,LMLoss,language_model
    from ulmfit_t5.train.optimizers import FusedAdam
    keep_freed_memory()
    lm = language_model(size['vocab'], AWD_LSTM_LM, emb_sz=size['emb_sz'], n_hid=size['n_hid']).to(a.device).train()
    loss_func,opt = LMLoss(lm),FusedAdam(lm.parameters(), lr=LR)
    def step(x, y):
        with torch.autocast(a.device, torch.bfloat16, enabled=bf16):
            out = lm(x)
            loss = loss_func(out, y)
        regularized(loss, out.dropped, out.raw).backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), CLIP)
        opt.step()
        opt.zero_grad()
    return measure(step, a, size['vocab'])

def fastai(a, size, bf16):
    import torch
    from fastai.text.all import AWD_LSTM,Adam,CrossEntropyLossFlat,awd_lstm_lm_config,get_language_model
    config = awd_lstm_lm_config | {k:size[k] for k in ('emb_sz','n_hid')}
    lm = get_language_model(AWD_LSTM, size['vocab'], config=config).to(a.device).train()
    lm.reset()
    loss_func,opt = CrossEntropyLossFlat(),Adam(lm.parameters(), lr=LR)
    def step(x, y):
        with torch.autocast(a.device, torch.bfloat16, enabled=bf16):
            logits,raw,dropped = lm(x)
            loss = loss_func(logits.float(), y)
        regularized(loss, dropped, raw).backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), CLIP)
        opt.step()
        opt.zero_grad()
    return measure(step, a, size['vocab'])

def jobs(a): return in_precisions(a, setting(a)[0], ours, fastai, 'fastai')

def rows(res, a):
    sizes,bs,t,_ = setting(a)
    out,has = [],'ours bf16' in res
    for k,s in sizes.items():
        what = f"{k} size (embedding {s['emb_sz']}, hidden {s['n_hid']}, {s['vocab']:,} words), batch {bs} x {t} tokens"
        out.append(res.row(f'AWD-LSTM training step fp32, {what}', 'ours fp32', 'fastai fp32', k, 'tokens/s'))
        if has: out.append(res.row(f'AWD-LSTM training step bf16, {what}', 'ours bf16', 'fastai fp32', k, 'tokens/s', note="fastai's own training on a CPU is float32"))
        if has: out.append(res.row(f'AWD-LSTM training step bf16, {what}', 'ours bf16', 'fastai bf16', k, 'tokens/s', note='both in torch.autocast'))
        for j,p,dt in (('ours fp32','fastai fp32','float32'),('ours bf16','fastai bf16','bfloat16')):
            if j not in res: continue
            out.append(matmul_share(res, f'{k} size', k, j, p, work(**s), dt))
    return out

if __name__=='__main__':
    a = parser(__doc__).parse_args()
    run(__file__, a, jobs(a), rows)
