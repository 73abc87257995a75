"""Tokenising and numericalising the same texts: our SubwordTokenizer with its word table empty and full, in one and two processes, our
WordTokenizer, and fastai's Tokenizer.from_df + Numericalize. Tokens mean different things, so the ratio is that of characters a second."""
import json,time
from common import n_cores,parser,review_texts,run

N = 4000
def setting(a): return 40 if a.quick else N

def prepare(a, tmp):
    "Texts; a subword vocabulary is the bundled one, or trained on half of them; the words' vocabulary is counted once"
    from ulmfit_t5.data.tokenizer import build_words,bundled_tokenizer,train_subword
    texts,_,name = review_texts(setting(a))
    try: tok = bundled_tokenizer()
    except FileNotFoundError: tok = train_subword(texts[::2][:1000], 600 if a.quick else 10_000, max_chars=1_000_000)
    tok.save(tmp/'subword')
    build_words(texts[:400]).save(tmp/'word')
    (tmp/'texts.json').write_text(json.dumps(dict(texts=texts, name=name)))

def rate(secs, tokens, texts): return dict(chars=sum(map(len, texts))/secs, tokens=tokens/secs, per=sum(map(len, texts))/tokens)

def texts_of(a): return json.loads((a.tmp/'texts.json').read_text())['texts']

def ours(kind, n_workers, warm=False):
    "Texts to ids in a memory-mapped file; with `warm`, each process has met the words before"
    def go(a):
        from ulmfit_t5.data.corpus import tokenize_corpus
        from ulmfit_t5.data.tokenizer import load_tokenizer
        texts,tok = texts_of(a),load_tokenizer(a.tmp/kind)
        if warm: tok.encode_batch(texts)
        s = time.perf_counter()
        c = tokenize_corpus(texts, tok, a.tmp/'cache'/f'{kind}{n_workers}{warm}{s}', n_workers=n_workers, progress=False)
        took = time.perf_counter()-s
        s = time.perf_counter()
        tokenize_corpus(texts, tok, c.path.parent, n_workers=n_workers, progress=False)
        return rate(took, c.n_tokens, texts) | dict(again=sum(map(len, texts))/(time.perf_counter()-s))
    return go

def fastai(n_workers):
    "A DataFrame to tensors of ids"
    def go(a):
        import pandas as pd
        from fastai.text.all import Datasets,Numericalize,Tokenizer,attrgetter
        texts,vocab = texts_of(a),json.loads((a.tmp/'word'/'tokenizer.json').read_text())['vocab']
        df = pd.DataFrame(dict(text=texts))
        s = time.perf_counter()
        ds = Datasets(df, [[attrgetter('text'),Tokenizer.from_df('text', n_workers=n_workers),Numericalize(vocab)]])
        tokens = sum(len(ds[i][0]) for i in range(len(ds)))
        return rate(time.perf_counter()-s, tokens, texts)
    return go

jobs = {'subword, cold':ours('subword', 1), 'fastai, 1 process':fastai(0), 'subword, warm':ours('subword', 1, True), 'words':ours('word', 1),
    'subword, 2 processes':ours('subword', 2), 'fastai, 2 processes':fastai(2)}

def rows(res, a):
    out,name = [],'fastai Tokenizer.from_df + Numericalize'
    cases = [('SubwordTokenizer, no word met before, 1 process','subword, cold','fastai, 1 process'), ('SubwordTokenizer, all words met before, 1 process','subword, warm','fastai, 1 process'),
        ('WordTokenizer (spaCy), 1 process','words','fastai, 1 process'), ('SubwordTokenizer, no word met before, 2 processes','subword, 2 processes','fastai, 2 processes')]
    for what,j,p in cases:
        note = f"{setting(a)} texts; {res.med(j,'per'):.2f} characters a token, fastai {res.med(p,'per'):.2f}; {n_cores()} cores"
        out.append(res.row(f'tokenising by {what}', j, p, 'chars', 'characters/s', peer_name=name, note=note))
        out.append(res.row(f'the same in tokens: {what}', j, p, 'tokens', 'tokens/s', peer_name=name, note='pieces against words: see the row of characters'))
    return out + [res.row('the same texts again (found by content hash)', 'subword, cold', 'fastai, 1 process', 'again', 'characters/s', peer_name=name, peer_key='chars',
        note='fastai tokenises a DataFrame again each time')]

if __name__=='__main__':
    a = parser(__doc__).parse_args()
    run(__file__, a, jobs, rows, prepare)
