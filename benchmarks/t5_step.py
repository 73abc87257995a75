"""A training step of T5: forward, loss, backward, clip, AdamW, with dropout and padded rows, on the same batches. Ours in float32 and bfloat16
against transformers' T5ForConditionalGeneration, and the share of the matrix products' rate that each reaches. That rate is torch.matmul's: ours can pass it in float32
where oneDNN, which its layers ask, is faster than MKL."""
import importlib,statistics,sys,time
from common import in_precisions,matmul_share,parser,run,sync

SIZES = dict(compact={'name':'compact'}, small={'name':'t5-small'})
TINY = dict(compact=dict(name='compact', d_model=32, d_ff=48, n_layers=1, vocab_sz=300), small=dict(name='t5-small', d_model=32, d_ff=64, n_layers=1, n_heads=2, vocab_sz=400))
LR,CLIP = 1e-4,1.

def setting(a): return (TINY,2,(16,6),1) if a.quick else (SIZES,8,(128,32),3)

def config(size):
    from ulmfit_t5.models.t5 import t5_config
    return t5_config(size['name'], **{k:v for k,v in size.items() if k!='name'})

def work(c, t, u):
    "Multiplications and additions of a row: two in forward and four in backward for each weight, and the products within attention"
    inner,ff = c.n_heads*c.d_kv,c.d_model*c.d_ff*(3 if c.gated else 2)
    att = lambda q,k: 2*inner*q*k
    enc = c.n_layers*(t*(4*c.d_model*inner+ff) + att(t, t))
    dec = c.dec_layers*(u*(6*c.d_model*inner+ff) + 2*t*c.d_model*inner + att(u, u) + att(u, t))
    return 6*(enc+dec+u*c.vocab_sz*c.d_model)

def batches(vocab, bs, t, u, n):
    "Ids, the last quarter of some rows padding"
    import torch
    torch.manual_seed(0)
    out = []
    for _ in range(n):
        x,y = torch.randint(2, vocab, (bs,t)),torch.randint(2, vocab, (bs,u))
        x[::3,-(t//4):],y[::3,-(u//4):] = 0,0
        out.append((x,y))
    return out

def measure(step, params, a, c):
    "Tokens a second: the median over steps after the first"
    import torch
    _,bs,(t,u),n = setting(a)
    opt,secs = torch.optim.AdamW(params, lr=LR, fused=True),[]
    for x,y in batches(c.vocab_sz, bs, t, u, n+1):
        x,y = x.to(a.device),y.to(a.device)
        sync(a.device)
        s = time.perf_counter()
        step(x, y).backward()
        torch.nn.utils.clip_grad_norm_(params, CLIP)
        opt.step()
        opt.zero_grad()
        sync(a.device)
        secs.append(time.perf_counter()-s)
    return bs*(t+u)/statistics.median(secs[1:])

def ours(a, size, bf16):
    import torch
    from ulmfit_t5.core import keep_freed_memory
    from ulmfit_t5.models.t5 import T5,T5Loss
    keep_freed_memory()
    c = config(size)
    m = T5(c).to(a.device).train()
    loss = T5Loss(m)
    def step(x, y):
        with torch.autocast(a.device, torch.bfloat16, enabled=bf16): return loss(m(x, y))
    return measure(step, list(m.parameters()), a, c)

def transformers(a, size, bf16):
    import torch
    try: importlib.import_module('torchvision')
    except (ImportError,RuntimeError): sys.modules['torchvision'] = None # transformers can do without it
    from transformers import T5Config,T5ForConditionalGeneration
    from ulmfit_t5.models.hf_t5 import config_to_hf
    c = config(size)
    m = T5ForConditionalGeneration(T5Config(**{k:v for k,v in config_to_hf(c).items() if k not in ('model_type','architectures')})).to(a.device).train()
    def step(x, y):
        with torch.autocast(a.device, torch.bfloat16, enabled=bf16): return m(input_ids=x, attention_mask=(x>0).long(), labels=y.masked_fill(y==0, -100)).loss
    return measure(step, list(m.parameters()), a, c)

def jobs(a): return in_precisions(a, setting(a)[0], ours, transformers, 'transformers')

def rows(res, a):
    sizes,bs,(t,u),_ = setting(a)
    out = []
    for k,s in sizes.items():
        flop = work(config(s), t, u)/(t+u)
        for dt,long in (('fp32','float32'),('bf16','bfloat16')):
            o,p = f'ours {dt}',f'transformers {dt}'
            if o not in res: continue
            out.append(res.row(f'T5 training step {dt}, {k} size, batch {bs} x ({t} tokens in, {u} out)', o, p, k, 'tokens/s'))
            out.append(matmul_share(res, f'T5 {k}', k, o, p, flop, long))
    return out

if __name__=='__main__':
    a = parser(__doc__).parse_args()
    run(__file__, a, jobs(a), rows)
