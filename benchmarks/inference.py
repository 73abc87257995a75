"""Answers of a document classifier of the paper's size: documents a second for many, milliseconds for one of 80 words. Ours (TextPredictor)
in float32 and bfloat16 against fastai's get_preds and predict, from the same random weights; the largest difference of their probabilities.
With --model FOLDER --test FILE (a saved classifier; a csv with columns text and label): accuracy in bfloat16 beside float32."""
import json,statistics,time
from common import line,parser,review_texts,run

MODEL,VOCAB,N,BS,N_OUT = dict(emb_sz=400, n_hid=1152),60_000,320,64,2
TINY = dict(emb_sz=24, n_hid=32)

def setting(a): return (TINY,2000,8,4,4) if a.quick else (MODEL,VOCAB,N,BS,12) # the last: single texts, the first two of them to warm up

def prepare(a, tmp):
    "Texts and a vocabulary; words that nobody uses fill it up to the size it has on the whole of IMDb"
    from ulmfit_t5.data.tokenizer import build_words
    _,vocab,n,_,k = setting(a)
    texts,labels,name = review_texts(n+k)
    if a.quick: texts = [t[:300] for t in texts]
    words = build_words(texts, vocab, 1).vocab
    single = [' '.join((t.split()*80)[:80]) for t in texts[n:]]
    d = dict(texts=texts[:n], labels=labels[:n], single=single, vocab=words+[f'xxnone{i}' for i in range(vocab-len(words))], name=name)
    (tmp/'data.json').write_text(json.dumps(d))

def load(a): return json.loads((a.tmp/'data.json').read_text())

def their_model(a, vocab):
    "fastai's classifier with random weights, the same in every process"
    import torch
    from fastai.text.all import AWD_LSTM,awd_lstm_clas_config,get_text_classifier
    torch.manual_seed(0)
    m = get_text_classifier(AWD_LSTM, len(vocab), N_OUT, config=awd_lstm_clas_config|setting(a)[0], drop_mult=.5)
    m[0].module.encoder.weight.data.normal_(std=.5) # with this and a strong head, answers differ from text to text
    for l in m[1].modules():
        if isinstance(l, torch.nn.Linear): l.weight.data.mul_(10)
    m.reset()
    return m

def our_model(a, vocab):
    "Ours with those weights"
    from torch import nn
    from ulmfit_t5.models.awd_lstm import AWDLSTM
    from ulmfit_t5.models.checkpoint import load_tensors
    from ulmfit_t5.models.fastai_weights import fastai_names
    from ulmfit_t5.models.heads import TextClassifier
    them = their_model(a, vocab)
    sd = them.state_dict()
    ts = {k:sd['0.module.'+v.removeprefix('0.')] for k,v in fastai_names(3, lm=False).items()}
    for i,n in enumerate(o for o in them[1].modules() if isinstance(o, nn.BatchNorm1d)): ts |= {f'head.{4*i}.{k}':t for k,t in n.state_dict().items()}
    for i,l in enumerate(o for o in them[1].modules() if isinstance(o, nn.Linear)):
        ts |= {f'head.{4*i+2}.weight':l.weight.data, f'head.{4*i+2}.bias':l.weight.new_zeros(l.out_features).data}
    return load_tensors(TextClassifier(AWDLSTM(len(vocab), **setting(a)[0]), N_OUT), ts)

class Ready:
    "A tokenizer that looks up what was tokenised before"
    pad_id = 1
    def __init__(self, tok, texts): self.ids = dict(zip(texts, tok.encode_batch(texts)))
    def encode_batch(self, texts): return [self.ids[t] for t in texts]

def once(f):
    s = time.perf_counter()
    res = f()
    return time.perf_counter()-s,res

def latency(f, texts): return 1000*statistics.median(once(lambda: f(t))[0] for t in texts[:2]+texts)

def ours(a, bf16):
    from ulmfit_t5.data.tokenizer import WordTokenizer
    from ulmfit_t5.inference import TextPredictor
    d = load(a)
    tok,model = WordTokenizer(d['vocab']),our_model(a, d['vocab'])
    make = lambda tok: TextPredictor(model, tok, ['a','b'], bf16=bf16, device=a.device)
    p = make(tok)
    p.predict(d['single'][0])
    t_text,probs = once(lambda: p.probs(d['texts']))
    t_ids,_ = once(lambda: make(ready).probs(d['texts'])) if (ready:=Ready(tok, d['texts'])) else None
    one = latency(p.predict, d['single'][2:])
    n = len(d['texts'])
    return dict(text=n/t_text, ids=n/t_ids, one=one, probs=probs.tolist(), single=p.probs(d['single']).tolist(), name=d['name'])

def fastai(a):
    import pandas as pd,torch
    from fastai.text.all import CrossEntropyLossFlat,Pad_Chunk,SortedDL,TensorText,TextDataLoaders,TextLearner
    d = load(a)
    n,bs = len(d['texts']),setting(a)[3]
    df = pd.DataFrame(dict(text=d['texts'][:8], label=list('ab')*4))
    dls = TextDataLoaders.from_df(df, text_col='text', label_col='label', text_vocab=d['vocab'], valid_pct=.25, bs=bs, device=a.device)
    learn = TextLearner(dls, their_model(a, d['vocab']).to(a.device), loss_func=CrossEntropyLossFlat())
    with learn.no_bar(),learn.no_logging():
        learn.predict(d['single'][0])
        t_text,(probs,_) = once(lambda: learn.get_preds(dl=dls.test_dl(d['texts'])))
        ids = [(dls.test_dl([t]).dataset[0][0],) for t in d['texts']]
        def batch(): return SortedDL([(TensorText(o[0]),) for o in ids], bs=bs, before_batch=Pad_Chunk(), shuffle=False, n_inp=1, device=torch.device(a.device))
        t_ids,_ = once(lambda: learn.get_preds(dl=batch()))
        one = latency(learn.predict, d['single'][2:])
        single,alone = ([learn.predict(t)[2].tolist() for t in ts] for ts in (d['single'],d['texts'][:setting(a)[4]]))
    return dict(text=n/t_text, ids=n/t_ids, one=one, probs=probs.tolist(), single=single, alone=alone)

def trained(a):
    "Accuracy of a saved classifier in both precisions"
    import pandas as pd
    from ulmfit_t5.inference import TextPredictor
    df = pd.read_csv(a.test)
    def accuracy(**kw):
        p = TextPredictor.load(a.model, **kw)
        return float((pd.Series(p.probs(df.text.tolist()).argmax(1)).map(dict(enumerate(p.labels))).values==df.label.astype(str).values).mean()*100)
    return dict(fp32=accuracy(), bf16=accuracy(bf16=True), n=len(df))

def jobs(a):
    from ulmfit_t5.core import bf16_fast
    res = {'ours fp32':lambda a: ours(a, False), 'fastai fp32':fastai}
    if bf16_fast(a.device): res['ours bf16'] = lambda a: ours(a, True)
    if bf16_fast(a.device) and a.model: res['trained'] = trained
    return res

def differ(p, q):
    import numpy as np
    k = min(len(p), len(q))
    return float(abs(np.array(p[:k])-np.array(q[:k])).max())

def answers(res, j, what):
    "How far ours is from fastai's predict, which sees one text at a time; and how far fastai's own batches are from it"
    us,them = res[j][0],res['fastai fp32'][0]
    k = len(them['alone'])
    def add(which, p, q, own=None, note=''):
        own = None if own is None else differ(own, q)
        name = f'largest difference of probabilities from fastai predict, {which}, {what}'
        return line(name, differ(p, q), own, own and own/max(differ(p, q), 1e-9), 'probability', 'lower', 'fastai get_preds' if own is not None else '', note)
    def span(q): return f"its answers go from {min(o[0] for o in q):.3f} to {max(o[0] for o in q):.3f}"
    note = f"{k} texts; fastai's batches take the last state of some texts from the chunk before; {span(them['alone'])}"
    return [add('80 words', us['single'], them['single'], note=span(them['single'])), add('whole documents in batches', us['probs'], them['alone'], them['probs'], note)]

def rows(res, a):
    size,_,n,bs,_ = setting(a)
    out,name = [],res['ours fp32'][0]['name']
    for j in [o for o in res if o.startswith('ours')]:
        def add(what, *args, note, **kw): out.append(res.row(f'{what}, {j[5:]}, AWD-LSTM (embedding {size["emb_sz"]}, hidden {size["n_hid"]})', j, 'fastai fp32', *args, note=note, **kw))
        add('classifying token ids in batches', 'ids', 'documents/s', peer_name='fastai get_preds', note=f'{n} {name}, sorted by length; fastai in batches of {bs}')
        add('classifying raw texts in batches', 'text', 'documents/s', peer_name='fastai test_dl + get_preds', note='tokenising included, one process')
        add('classifying one text of 80 words', 'one', 'ms', 'lower', peer_name='fastai predict', note='median latency, tokenising included')
        out += answers(res, j, f"{j[5:]}, {size['emb_sz']}/{size['n_hid']}")
    if 'trained' in res:
        r = res['trained'][0]
        out.append(line(f'accuracy of a trained model on {r["n"]} texts, bf16', r['bf16'], r['fp32'], r['bf16']/r['fp32'], '%', 'higher', 'ours fp32'))
    else: print('Accuracy in bfloat16 of a trained model is left out: name one with --model FOLDER --test FILE')
    return out

if __name__=='__main__':
    p = parser(__doc__)
    p.add_argument('--model', help='folder of a saved classifier')
    p.add_argument('--test', help='csv with columns text and label')
    a = p.parse_args()
    run(__file__, a, jobs(a), rows, prepare)
