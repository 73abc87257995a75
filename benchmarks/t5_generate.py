"""Writing with a T5, milliseconds a token of each text: generate and beam_search against transformers' generate, from the same folder of random weights, on the
same inputs, in float32 and bfloat16. The ids of the greedy texts are compared."""
import importlib,sys,time
from common import line,parser,run

INPUT = 64
WAYS = {'greedy 1':(1,1), 'greedy 8':(8,1), 'beam 4':(1,4)} # texts, beams
TINY = dict(d_model=32, d_ff=64, n_layers=1, n_heads=2, vocab_sz=400)

def setting(a): return ('t5-small',TINY,4) if a.quick else ('t5-small',{},32)

def prepare(a, tmp):
    import torch
    from ulmfit_t5.models.hf_t5 import save_hf_t5
    from ulmfit_t5.models.t5 import T5,t5_config
    torch.manual_seed(0)
    name,kw,_ = setting(a)
    m = T5(t5_config(name, **kw))
    with torch.no_grad(): m.embed.weight[0].zero_()
    save_hf_t5(tmp/'t5', m)

def inputs(a, n, vocab):
    import torch
    torch.manual_seed(1)
    return torch.randint(2, vocab, (n,8 if a.quick else INPUT), device=a.device)

def measure(a, f, vocab):
    "Milliseconds a token of a text for each way, after a short call, and the greedy ids"
    n,res = setting(a)[2],{}
    for k,(b,beams) in WAYS.items():
        x = inputs(a, b, vocab)
        f(x, 2, beams)
        s = time.perf_counter()
        ids = f(x, n, beams)
        res[k] = 1000*(time.perf_counter()-s)/n
        if beams==1: res[f'ids {b}'] = ids
    return res

def ours(bf16):
    def go(a):
        import dataclasses,torch
        from ulmfit_t5.models.generate import beam_search,by_columns,generate
        from ulmfit_t5.models.hf_t5 import load_hf_t5
        m = load_hf_t5(a.tmp/'t5').to(a.device, torch.bfloat16 if bf16 else torch.float32)
        if a.device=='cpu': by_columns(m)
        m.config = dataclasses.replace(m.config, eos_id=-1) # no text ends early: both write as many tokens
        return measure(a, lambda x, n, beams: (generate(m, x, n) if beams==1 else beam_search(m, x, n, beams)).ids, m.config.vocab_sz)
    return go

def transformers(bf16):
    def go(a):
        import torch
        try: importlib.import_module('torchvision')
        except (ImportError,RuntimeError): sys.modules['torchvision'] = None # transformers can do without it
        from transformers import T5ForConditionalGeneration
        m = T5ForConditionalGeneration.from_pretrained(a.tmp/'t5', dtype=torch.bfloat16 if bf16 else torch.float32).to(a.device).eval()
        m.generation_config.eos_token_id = None
        def f(x, n, beams):
            return m.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=n, num_beams=beams, do_sample=False)[:,1:].tolist()
        return measure(a, f, m.config.vocab_size)
    return go

def jobs(a):
    from ulmfit_t5.core import bf16_fast
    both = {'ours fp32':ours(False), 'transformers fp32':transformers(False)}
    if bf16_fast(a.device) or a.quick: both |= {'ours bf16':ours(True), 'transformers bf16':transformers(True)}
    return both

def rows(res, a):
    name,_,n = setting(a)
    out = []
    for dt in ('fp32','bf16'):
        o,p = f'ours {dt}',f'transformers {dt}'
        if o not in res: continue
        for k,(b,_) in WAYS.items():
            how = f"{'greedy' if k.startswith('greedy') else 'beam search of 4'}, batch {b}"
            out.append(res.row(f'writing {n} tokens {dt}, {name}, {how}', o, p, k, 'ms/token', 'lower', 'transformers generate'))
    ids = [(x,y) for k in ('ids 1','ids 8') for x,y in zip(res['ours fp32'][0][k], res['transformers fp32'][0][k])]
    same = sum(x==y for x,y in ids)/len(ids)
    return out + [line(f'share of greedy texts that are the same, {name}, fp32', same, None, None, 'of 1', 'higher', note='ids of all tokens')]

if __name__=='__main__':
    a = parser(__doc__).parse_args()
    run(__file__, a, jobs(a), rows, prepare)
