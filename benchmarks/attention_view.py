"""Bytes of the picture of a T5's attention, ours with the few largest weights of each row against bertviz's full matrices, compact T5, inputs of up
to 512 tokens and an answer of 64. bertviz's picture is also nothing without its CDN (require.js, jQuery, d3); where it is not installed its payload is counted
as it writes it: one JSON number for each weight. Its users report that T5 crashes a notebook at more than a few sentences (its issue 74) and that nothing loads any
more towards 512 tokens (its issue 82, where its author answers that it is meant for short texts); here only the bytes are counted."""
import json,time
from common import line,parser,write

def texts(tok, n, m, seed=0):
    "Random ids of `n` input and `m` answer tokens, no special ones"
    import torch
    g = torch.Generator().manual_seed(seed)
    return [torch.randint(300, len(tok), (k,), generator=g) for k in (n,m)]

def ours(model, tok, x, y, top):
    from ulmfit_t5.interpret.attention import AttentionView,attention_of
    t = time.perf_counter()
    v = AttentionView(attention_of(model, x, y, top), tok.pieces(x), tok.pieces(y))
    size = len(v._repr_html_().encode())
    return size,time.perf_counter()-t,v.sides['encoder'].kept

def bertviz(model, tok, x, y):
    "Bytes, seconds and who counted: bertviz itself, or its format written here"
    import torch
    from ulmfit_t5.interpret.attention import attention_of
    full = {k:[torch.as_tensor(l)[None] for l in v.dense()] for k,v in attention_of(model, x, y, None).items()} # (1 h q k) each
    t = time.perf_counter()
    try: from bertviz import head_view
    except ImportError:
        size = sum(len(json.dumps(l.tolist())) for v in full.values() for l in v)
        return size,time.perf_counter()-t,'counted as bertviz writes it'
    page = head_view(encoder_attention=full['encoder'], decoder_attention=full['decoder'], cross_attention=full['cross'],
        encoder_tokens=tok.pieces(x), decoder_tokens=tok.pieces(y), html_action='return')
    return len(page.data.encode()),time.perf_counter()-t,'bertviz head_view'

def main():
    p = parser(__doc__)
    p.add_argument('--top', type=int, default=8, help='weights of each row that ours keeps')
    a = p.parse_args()
    import torch
    from ulmfit_t5.core import seed_everything
    from ulmfit_t5.data.tokenizer import bundled_tokenizer
    from ulmfit_t5.models.t5 import T5
    from ulmfit_t5.writer import vocab_config
    torch.set_num_threads(a.threads)
    seed_everything(0)
    began,rows,tok = time.time(),[],bundled_tokenizer()
    model = T5(vocab_config(tok, 'compact')).eval()
    for n in (16,64) if a.quick else (64,128,256,512):
        x,y = texts(tok, n, 8 if a.quick else 64)
        size,took,kept = ours(model, tok, x, y, a.top)
        theirs,slow,who = bertviz(model, tok, x, y)
        note = f'{a.top} weights of a row, {kept:.0%} of the weight of random weights; an answer of {len(y)} tokens' + ('; at this length its users see nothing load (bertviz issue 82)' if n==512 else '')
        rows.append(line(f'picture of the attention to {n} tokens', size, theirs, theirs/size, 'bytes', 'lower', who, note))
    rows.append(line(f'time to make the picture of {n} tokens', took, slow, slow/took, 's', 'lower', who, 'ours with the pass of the model, the peer without'))
    write('attention_view', a, rows, time.time()-began)

if __name__=='__main__': main()
