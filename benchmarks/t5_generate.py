"""Writing with a T5, milliseconds a step: generate and beam_search of a packed model against transformers' generate, from the same folder of random weights, on the
same inputs, in float32, with weights in float16, and in bfloat16. In float32 all ids must be the same; in 16 bits the share of texts that are is counted, on the bundled
model too where the package has it. On one CPU thread what counts is processor time, which other processes on the machine change little."""
import importlib,statistics,sys,time
from common import line,parser,review_texts,run,timed

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

def measure(a, f, vocab, reps=3):
    "Milliseconds a step for each way, the median of some calls after a short one, and the ids"
    n,res,now = setting(a)[2],{},clock(a)
    for k,(b,beams) in WAYS.items():
        x,secs = inputs(a, b, vocab),[]
        f(x, 2, beams)
        for _ in range(1 if a.quick else reps):
            s = now()
            ids = f(x, n, beams)
            secs.append(now()-s)
        res[k],res[f'ids {k}'] = 1000*statistics.median(secs)/n,ids
    return res

def ours(dtype):
    def go(a):
        import dataclasses
        from ulmfit_t5.models.generate import beam_search,generate
        from ulmfit_t5.models.hf_t5 import load_hf_t5
        from ulmfit_t5.models.packed import packed
        m = packed(load_hf_t5(a.tmp/'t5').to(a.device), dtype)
        m.config = dataclasses.replace(m.config, eos_id=-1) # no text ends early: both write as many tokens
        return measure(a, lambda x, n, beams: (generate(m, x, n) if beams==1 else beam_search(m, x, n, beams, 1., 'power')).ids, m.config.vocab_sz)
    return go

def real(a):
    "Share of texts that the bundled model writes in 16 bits as in 32"
    from ulmfit_t5.writer import TextWriter
    w = TextWriter.load('t5-compact', say=None, max_len=setting(a)[2])
    texts = [f'sst2 sentence: {t[:300]}' for t in review_texts(8 if a.quick else 200)[0]]
    want = w.write(texts).texts
    return {k:statistics.mean(o==p for o,p in zip(w.write(texts, dtype=k).texts, want)) for k in kinds(a)[1:]}

def products(a):
    "Milliseconds that the matrix products of a step take alone, one row by each matrix that a step reads, in float32; and the millions of bytes of these"
    import torch,torch.nn.functional as F
    from ulmfit_t5.models.hf_t5 import load_hf_t5
    m = load_hf_t5(a.tmp/'t5').eval()
    ws = [w.detach() for n,w in m.decoder.named_parameters() if w.dim()==2 and not n.endswith(('bias.weight','cross.k.weight','cross.v.weight'))] + [m.embed.weight.detach()]
    xs = [torch.randn(1, w.shape[1]) for w in ws]
    with torch.inference_mode(): t = timed(lambda: [F.linear(x, w) for x,w in zip(xs, ws)], 1 if a.quick else 20, clock=clock(a))
    return dict(ms=1000*t, mb=sum(w.numel()*4 for w in ws)/1e6)

def clock(a): return time.process_time if a.device=='cpu' and a.threads==1 else time.perf_counter

def kinds(a):
    "Types of weights that this machine is made for, the first one as they are"
    import torch
    from ulmfit_t5.core import bf16_fast
    fp16 = a.device=='cpu' and 'fbgemm' in torch.backends.quantized.supported_engines
    return [None]+['fp16']*fp16+['bf16']*(bf16_fast(a.device) or a.quick)

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

PEERS = {None:'fp32', 'fp16':'fp32', 'bf16':'bf16'} # what transformers does meanwhile

def jobs(a):
    from ulmfit_t5.core import bundled
    both = {f'ours {k or "fp32"}':ours(k) for k in kinds(a)} | {f'transformers {p}':transformers(p=='bf16') for p in dict.fromkeys(PEERS[k] for k in kinds(a))}
    if a.device=='cpu': both['products'] = products
    return both | ({'bundled':real} if bundled('datasets.json').with_name('t5-compact').is_dir() else {})

def same(res, o):
    "Share of texts whose ids are all those of transformers in float32"
    pairs = [(x,y) for k in WAYS for x,y in zip(res[o][0][f'ids {k}'], res['transformers fp32'][0][f'ids {k}'])]
    return sum(x==y for x,y in pairs)/len(pairs)

def rows(res, a):
    name,_,n = setting(a)
    out,took = [],'processor time of one thread' if a.device=='cpu' and a.threads==1 else 'wall time'
    for k in kinds(a):
        o,p,what = f'ours {k or "fp32"}',f'transformers {PEERS[k]}',dict(fp16='weights in fp16').get(k, k or 'fp32')
        for way,(b,_) in WAYS.items():
            how = f"{'greedy' if way.startswith('greedy') else 'beam search of 4'}, batch {b}"
            out.append(res.row(f'T5 writing {n} tokens, {what}, {name}, {how}', o, p, way, 'ms/step', 'lower', f'transformers generate, {PEERS[k]}', note=took))
        share = same(res, o)
        if k is None and share<1: raise SystemExit(f'in float32 only {share:.0%} of the texts are those of transformers: a step is wrong')
        out.append(line(f'share of texts as transformers writes in fp32, {what}, {name}', share, None, None, 'of 1', 'higher', note='random weights, all ids compared'))
    if 'products' in res:
        ms,us,them = res.med('products', 'ms'),res.med('ours fp32', 'greedy 1'),res.med('transformers fp32', 'greedy 1')
        note = f'{res.med("products", "mb"):.0f} MB of weights are read in {ms:.3g} ms a step'
        out.append(line(f'share of a step that its matrix products take alone, fp32, {name}, greedy, batch 1', ms/us, ms/them, them/us, 'of 1', 'higher', 'transformers generate, fp32', note))
    for k,share in res['bundled'][0].items() if 'bundled' in res else ():
        out.append(line(f'share of texts as in fp32, weights in {k}, t5-compact', share, None, None, 'of 1', 'higher', note='reviews to be judged, greedy'))
    return out

if __name__=='__main__':
    a = parser(__doc__).parse_args()
    run(__file__, a, jobs(a), rows, prepare)
