"""Fine-tuning a document classifier of the paper's size, all layers, documents a second: ours (TextClassifier, BPT3C) in float32 and
bfloat16 against fastai's get_text_classifier with its SortedDL and Pad_Chunk. The same documents in the same batches, the same dropouts."""
import json,time
from common import parser,review_texts,run,sync

MODEL,VOCAB,N,BS = dict(emb_sz=400, n_hid=1152),60_000,64,32
TINY = dict(emb_sz=24, n_hid=32)
N_OUT,BPTT,MAX_LEN,CLIP,LR = 2,72,1440,.4,1e-3

def setting(a): return (TINY,2000,8,4) if a.quick else (MODEL,VOCAB,N,BS)

def prepare(a, tmp):
    "Ids of real texts by spaCy words, in a vocabulary that is then as large as that of the whole of IMDb, and fastai's batches of them"
    import numpy as np
    from fastai.text.data import SortedDL
    from ulmfit_t5.data.tokenizer import build_words
    _,vocab,n,bs = setting(a)
    texts,_,name = review_texts(n)
    tok = build_words(texts, vocab, 1)
    ids = [o.tolist() for o in tok.encode_batch([t[:400] for t in texts] if a.quick else texts)]
    np.random.seed(0)
    lens = [len(o) for o in ids]
    order = list(SortedDL(list(range(n)), res=lens, sort_func=len, bs=bs, shuffle=True).shuffle_fn(list(range(n))))
    groups = [[int(i) for i in order[k:k+bs]] for k in range(0, n, bs)]
    (tmp/'data.json').write_text(json.dumps(dict(ids=ids, groups=groups, name=name, tokens=sum(lens))))

def measure(step, a, make):
    "Documents a second over all batches, after a step on the first 2 documents"
    import torch
    d = json.loads((a.tmp/'data.json').read_text())
    torch.manual_seed(0)
    y = torch.randint(0, N_OUT, (len(d['ids']),))
    bat = [(make([d['ids'][i] for i in g]).to(a.device),y[g].to(a.device)) for g in d['groups']]
    g = d['groups'][-1][-2:]
    step(make([d['ids'][i] for i in g]).to(a.device), y[g].to(a.device))
    sync(a.device)
    s = time.perf_counter()
    for b in bat: step(*b)
    sync(a.device)
    return dict(docs=len(y)/(time.perf_counter()-s), tokens=d['tokens'], n=len(y), name=d['name'], cells=sum(x.numel() for x,_ in bat))

def ours(a, bf16):
    import torch
    from ulmfit_t5.core import keep_freed_memory
    from ulmfit_t5.inference import pad_rows
    from ulmfit_t5.models.awd_lstm import AWDLSTM,AWD_LSTM_CLAS
    from ulmfit_t5.models.heads import TextClassifier
    from ulmfit_t5.models.losses import classifier_loss
    from ulmfit_t5.train.optimizers import FusedAdam
    keep_freed_memory()
    size,vocab,_,_ = setting(a)
    torch.manual_seed(0)
    model = TextClassifier(AWDLSTM(vocab, **{k:v for k,v in AWD_LSTM_CLAS.items() if k!='output_p'}|size), N_OUT, BPTT, MAX_LEN).to(a.device).train()
    loss_func,opt = classifier_loss(),FusedAdam(model.parameters(), lr=LR)
    def step(x, y):
        with torch.autocast(a.device, torch.bfloat16, enabled=bf16): out = model(x)
        loss = loss_func(out, y)
        enc = model.last_out
        (loss + 2*enc.out.float().pow(2).mean() + (enc.raw[:,1:]-enc.raw[:,:-1]).float().pow(2).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        opt.step()
        opt.zero_grad()
    return measure(step, a, lambda rows: pad_rows([torch.tensor(r).numpy() for r in rows]))

def fastai(a):
    import torch
    from fastai.text.all import AWD_LSTM,Adam,CrossEntropyLossFlat,Pad_Chunk,TensorText,awd_lstm_clas_config,get_text_classifier
    size,vocab,_,_ = setting(a)
    torch.manual_seed(0)
    model = get_text_classifier(AWD_LSTM, vocab, N_OUT, BPTT, config=awd_lstm_clas_config|size, drop_mult=1., max_len=MAX_LEN).to(a.device).train()
    model.reset()
    loss_func,opt,pad = CrossEntropyLossFlat(),Adam(model.parameters(), lr=LR),Pad_Chunk(seq_len=BPTT)
    def make(rows): return torch.stack([o[0].as_subclass(torch.Tensor) for o in pad([(TensorText(r),) for r in rows])])
    def step(x, y):
        out,raw,dropped = model(x)
        loss = loss_func(out, y)
        (loss + 2*dropped.float().pow(2).mean() + (raw[:,1:]-raw[:,:-1]).float().pow(2).mean()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        opt.step()
        opt.zero_grad()
    return measure(step, a, make)

def jobs(a):
    from ulmfit_t5.core import bf16_fast
    res = {'ours fp32':lambda a: ours(a, False), 'fastai fp32':fastai}
    if bf16_fast(a.device) or a.quick: res['ours bf16'] = lambda a: ours(a, True)
    return res

def rows(res, a):
    size,vocab,_,bs = setting(a)
    r = res['ours fp32'][0]
    what = f"AWD-LSTM (embedding {size['emb_sz']}, hidden {size['n_hid']}, {vocab:,} words), batch {bs}"
    note = f"{r['n']} {r['name']}, {r['tokens']/r['n']:.0f} tokens on average; all layers train; chunks of {BPTT}, {MAX_LEN} tokens pooled"
    return [res.row(f'classifier fine-tuning {j[5:]}, {what}', j, 'fastai fp32', 'docs', 'documents/s', note=note) for j in res if j.startswith('ours')]

if __name__=='__main__':
    a = parser(__doc__).parse_args()
    run(__file__, a, jobs(a), rows, prepare)
