"""Generating text with a language model of the paper's size, milliseconds a word: ours (generate_text) against fastai's LMLearner.predict,
from the same random weights, both drawing from the whole vocabulary."""
import json,time
from common import line,parser,review_texts,run

MODEL,VOCAB,WORDS = dict(emb_sz=400, n_hid=1152),30_000,(10,40)
TINY = dict(emb_sz=24, n_hid=32)
PROMPT = 'The film begins in a small town where nothing ever happens , until one morning'

def setting(a): return (TINY,2000,(3,6)) if a.quick else (MODEL,VOCAB,WORDS)

def prepare(a, tmp):
    from ulmfit_t5.data.tokenizer import build_words
    texts,_,_ = review_texts(64)
    words = build_words([*texts,PROMPT], setting(a)[1], 1).vocab
    (tmp/'data.json').write_text(json.dumps(dict(texts=texts[:16], vocab=words+[f'xxnone{i}' for i in range(setting(a)[1]-len(words))])))

def their_model(a, n):
    import torch
    from fastai.text.all import AWD_LSTM,awd_lstm_lm_config,get_language_model
    torch.manual_seed(0)
    m = get_language_model(AWD_LSTM, n, config=awd_lstm_lm_config|setting(a)[0])
    m.reset()
    return m.eval()

def measure(a, f):
    "Milliseconds a word for each length, after a short call"
    f(2)
    res = {}
    for n in setting(a)[2]:
        s = time.perf_counter()
        f(n)
        res[str(n)] = 1000*(time.perf_counter()-s)/n
    return res

def ours(a):
    import torch
    from ulmfit_t5.data.tokenizer import WordTokenizer
    from ulmfit_t5.inference import generate_text
    from ulmfit_t5.models.awd_lstm import language_model
    from ulmfit_t5.models.checkpoint import load_tensors
    from ulmfit_t5.models.fastai_weights import fastai_names
    tok = WordTokenizer(json.loads((a.tmp/'data.json').read_text())['vocab'])
    sd = their_model(a, len(tok)).state_dict()
    lm = load_tensors(language_model(len(tok), **setting(a)[0], n_layers=3), {k:sd[v] for k,v in fastai_names(3).items()}).to(a.device).eval()
    with torch.no_grad(): logits = lm.logits(lm(torch.tensor([tok.encode(PROMPT)], device=a.device)))[0,-1].float()
    lm.reset()
    return measure(a, lambda n: generate_text(lm, tok, PROMPT, n, temperature=1., top_k=None)) | dict(probs=logits.softmax(-1)[:500].tolist())

def fastai(a):
    import pandas as pd,torch
    from fastai.text.all import CrossEntropyLossFlat,LMLearner,TextDataLoaders
    d = json.loads((a.tmp/'data.json').read_text())
    df = pd.DataFrame(dict(text=d['texts']))
    dls = TextDataLoaders.from_df(df, text_col='text', is_lm=True, text_vocab=d['vocab'], valid_pct=.25, bs=2, seq_len=16, device=a.device)
    learn = LMLearner(dls, their_model(a, len(d['vocab'])).to(a.device), loss_func=CrossEntropyLossFlat())
    ids = dls.test_dl([PROMPT]).items[0].to(a.device)
    with torch.no_grad(): probs = learn.model.eval()(ids[None])[0][0,-1].softmax(-1)[:500].tolist()
    with learn.no_logging(): return measure(a, lambda n: learn.predict(PROMPT, n, no_bar=True)) | dict(probs=probs)

jobs = {'ours fp32':ours, 'fastai fp32':fastai}

def rows(res, a):
    size,vocab,words = setting(a)
    what = f"AWD-LSTM (embedding {size['emb_sz']}, hidden {size['n_hid']}, {vocab:,} words)"
    out = [res.row(f'writing {n} words, {what}', 'ours fp32', 'fastai fp32', str(n), 'ms/word', 'lower', 'fastai LMLearner.predict') for n in words]
    diff = max(abs(o-p) for o,p in zip(res['ours fp32'][0]['probs'], res['fastai fp32'][0]['probs']))
    return out + [line(f'largest difference of the next word\'s probabilities, {what}', diff, None, None, 'probability', 'lower', note='first 500 words')]

if __name__=='__main__':
    a = parser(__doc__).parse_args()
    run(__file__, a, jobs, rows, prepare)
