"""From how many rows on bfloat16 is worth it for one LSTM layer of the paper's and of the compact size: milliseconds of processor time for a step, forward and backward,
over 36 tokens. PyTorch's CPU kernel (oneDNN) multiplies the rows of one token at a time on the way back, and few rows leave bfloat16's products idle."""
import time
from common import parser,run

SIZES,ROWS,TOKENS = (('paper size',1152),('compact size',512)),(8,16,32,40,48,64),36

def step_ms(a, dtype):
    "Milliseconds by size and rows"
    import torch
    from common import timed
    def one(h, b):
        ws = [(torch.randn(*s)*h**-.5).to(dtype).requires_grad_() for s in ((4*h,h),(4*h,h),(4*h,),(4*h,))]
        x,z = torch.randn(TOKENS, b, h, dtype=dtype, requires_grad=True),torch.zeros(1, b, h, dtype=dtype)
        def go(): torch._VF.lstm(x, (z,z), ws, True, 1, 0., True, False, False)[0].sum().backward()
        return 1000*timed(go, 2 if a.quick else 5, clock=time.process_time)
    return {f'{name} {b}':one(16 if a.quick else h, b) for name,h in SIZES for b in ROWS}

def rows(res, a):
    return [res.row(f'LSTM layer of {n} ({h}), {TOKENS} tokens of {b} rows, forward and backward, bf16', 'bf16', 'fp32', f'{n} {b}', 'ms', 'lower', peer_name='the same in fp32')
        for n,h in SIZES for b in ROWS]

if __name__=='__main__':
    import torch
    run(__file__, parser(__doc__).parse_args(), dict(bf16=lambda a: step_ms(a, torch.bfloat16), fp32=lambda a: step_ms(a, torch.float32)), rows)
