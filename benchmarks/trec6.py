"""Test error on TREC-6 with all its labels, the bundled language models, within four minutes of CPU a direction: ULMFiT forward, backward and both
together, the same network from scratch, TF-IDF of words and characters + logistic regression. Needs the questions in $ULMFIT_T5_DATA.

The plans were chosen on 545 held-out training questions (--dev repeats that comparison); the 500 test questions are only looked at here.
"""
import statistics,time
from common import line,parser,write

def tfidf(train, test):
    "Test error of logistic regression on TF-IDF of words and of characters"
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline,make_union
    words,chars = TfidfVectorizer(ngram_range=(1,2), sublinear_tf=True),TfidfVectorizer(analyzer='char_wb', ngram_range=(1,5), sublinear_tf=True)
    m = make_pipeline(make_union(words, chars), LogisticRegression(C=10., max_iter=2000))
    return float((m.fit(train.text, train.label).predict(test.text)!=test.label).mean())

def fit(a, train, test, start, seed, backwards=False):
    "A trained `ULMFiT`, its test error and the seconds it took"
    import pandas as pd
    from ulmfit_t5.all import LineProgress,TextDataLoaders,ULMFiT,UnfreezeSchedule as U
    t = time.time()
    df = pd.concat([train.assign(is_valid=False), train[:64].assign(is_valid=True)]) # the 64 only show that it learns
    dls = TextDataLoaders.from_df(df, valid_col='is_valid', bs=32, seed=seed, backwards=backwards, progress=False)
    lm_dls = start and TextDataLoaders.from_list(train.text.tolist(), is_lm=True, valid_pct=.05, bs=32, seq_len=35, seed=seed, backwards=backwards,
        progress=False)
    n = 5 # groups: embedding, three layers, head (of the language model: the bias of its softmax)
    plan = U.full(n, 8, lr=4e-3, factor=1., name='all at once') if start is None else U.full(n, a.epochs, lr=4e-3, factor=1.3, name='all at once')
    u = ULMFiT(dls, lm_dls, start, lm_plan=start and U.full(n, a.lm_epochs, lr=4e-3, factor=1.3, name='language model'), plan=plan, lm_drop=a.lm_drop, drop=a.drop, seed=seed)
    u.fit(60*a.minutes, lm_share=.4, cbs=[LineProgress(every_s=30)])
    return u,u.evaluate(test),time.time()-t

def main():
    p = parser(__doc__)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--minutes', type=float, default=4, help='time for each model')
    p.add_argument('--epochs', type=float, default=6, help='of the classifier')
    p.add_argument('--lm-epochs', type=float, default=6, help='of the language model')
    p.add_argument('--drop', type=float, default=.5, help='dropout multiplier of the classifier')
    p.add_argument('--lm-drop', type=float, default=.5, help='dropout multiplier of the language model')
    p.add_argument('--dev', action='store_true', help='test on held-out training questions instead; nothing is kept')
    p.add_argument('--only', default='', help='forward, backward, both or scratch; all by default')
    a = p.parse_args()
    import torch
    from ulmfit_t5.all import bidirectional,load_dataset
    torch.set_num_threads(a.threads)
    began,train,test = time.time(),load_dataset('trec', 'train'),load_dataset('trec', 'test')
    if a.dev:
        test = train.sample(545, random_state=0)
        train = train.drop(test.index)
    if a.quick: train,test,a.seeds,a.minutes = train[:200],test[:60],1,.02
    base,errors,secs = tfidf(train, test),{},{}
    def note(k, e, t):
        errors.setdefault(k, []).append(e['error'])
        secs.setdefault(k, []).append(t)
    for seed in range(a.seeds):
        made = {}
        for k,start,back in (('forward','awd-lstm-fwd',False),('backward','awd-lstm-bwd',True),('scratch',None,False)):
            if a.only not in ('',k) and not (a.only=='both' and start): continue
            made[k],e,t = fit(a, train, test, start, seed, back)
            note(k, e, t)
        if {'forward','backward'}<=made.keys():
            made['forward'].learn = bidirectional(made['forward'], made['backward'])
            got = made['forward'].learn.probs(test.text.tolist()).argmax(1)
            want = test.label.map({l:i for i,l in enumerate(made['forward'].learn.labels)}).to_numpy()
            note('both', dict(error=float((got!=want).mean())), secs['forward'][-1]+secs['backward'][-1])
    rows,mean,part = [],lambda k: statistics.mean(errors[k]),'held-out' if a.dev else 'test'
    names = dict(forward='forward model', backward='backward model', both='both models together', scratch='from scratch')
    for k in errors:
        spread = f"sd {100*statistics.pstdev(errors[k]):.1f} over {a.seeds} seeds, {statistics.mean(secs[k]):.0f} s each, {len(test)} {part} questions"
        rows.append(line(f'TREC-6 {part} error, {names[k]}', 100*mean(k), 100*base, base/mean(k), '%', 'lower', 'TF-IDF of words and characters + logistic regression', spread))
        if k!='scratch' and 'scratch' in errors:
            rows.append(line(f'TREC-6 {part} error, {names[k]}', 100*mean(k), 100*mean('scratch'), mean('scratch')/mean(k), '%', 'lower', 'the same network from scratch', 'all 5,452 labels for both'))
    if a.dev: a.quick = True
    write('trec6', a, rows, time.time()-began)

if __name__=='__main__': main()
