"""What the bundled T5 is worth on six tasks: fine-tuned from the bundled weights and from random ones with the same steps, and TF-IDF with logistic (STS-B: ridge) regression on all labels, of the input as one text and, stronger where two sentences are compared, of both with their
difference and product. Validation parts of GLUE and SuperGLUE in $ULMFIT_T5_DATA; nothing was chosen on them.

A score is the mean of the task's metrics, answers kept to the labels where there are some; where there is no correlation to speak of (always the
same number, or none that can be read) it is 0. A ratio is of what is missing to 100."""
import math,statistics,time
from common import line,parser,write

TASKS = 'sst2','cola','mrpc','stsb','rte','boolq'
SIDES = dict(sst2=('sentence',), cola=('sentence',), mrpc=('sentence1','sentence2'), stsb=('sentence1','sentence2'), rte=('sentence1','sentence2'), boolq=('question','passage'))

def features(train, valid, sides):
    "TF-IDF of words and characters of each side; of a pair also their difference, product and cosine; of the whole input where there is no side"
    import numpy as np
    from scipy.sparse import csr_matrix,hstack
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union
    v = make_union(TfidfVectorizer(ngram_range=(1,2), sublinear_tf=True),
        TfidfVectorizer(analyzer='char_wb', ngram_range=(2,4), sublinear_tf=True, max_features=100_000))
    if not sides: return v.fit_transform(train.inputs),v.transform(valid.inputs)
    v.fit([r[s] for r in train.rows for s in sides])
    def one(ex):
        ms = [v.transform([r[s] for r in ex.rows]) for s in sides]
        if len(ms)==1: return ms[0]
        a,b = ms
        return hstack([a, b, abs(a-b), a.multiply(b), csr_matrix(np.asarray(a.multiply(b).sum(1)))]).tocsr()
    return one(train),one(valid)

def mean(s): return 0. if math.isnan(s.mean) else s.mean # of the metrics

def tfidf(train, valid, sides=()):
    "Mean of the task's metrics for linear models on TF-IDF"
    from sklearn.linear_model import LogisticRegression,Ridge
    from ulmfit_t5.all import score
    x,z = features(train, valid, sides)
    number = train.task.name=='stsb'
    y = [float(t) for t in train.targets] if number else train.targets
    m = Ridge(1.) if number else LogisticRegression(C=10., max_iter=1000)
    got = m.fit(x, y).predict(z)
    return mean(score(valid.read([f'{min(5, max(0, o)):.1f}' for o in got] if number else list(got))))

def fit(a, start, train, valid, seed):
    "Mean of the metrics after fine-tuning, and seconds"
    from ulmfit_t5.all import LineProgress,Text2TextDataLoaders,TextWriter,UnfreezeSchedule,score,seed_everything,text2text_learner
    from ulmfit_t5.data.tokenizer import load_tokenizer
    from ulmfit_t5.artefacts import model_path
    t = time.time()
    seed_everything(seed)
    tok,name = load_tokenizer(model_path(a.model)),train.task.name
    dls = Text2TextDataLoaders.from_examples({name:train}, {name:valid}, tok, inputs_length=256, targets_length=16, bs=8, pack=True, seed=seed)
    learn = text2text_learner(dls, start, lr=a.lr)
    plan = UnfreezeSchedule.full(len(learn.model.groups()), a.steps/len(dls.train), lr=a.lr, factor=1., name='all at once')
    with learn.no_logging(), learn.no_bar(): learn.fit_unfreeze(plan, cbs=[LineProgress(every_s=60)])
    w = TextWriter(learn.model, tok, task=valid.task, inputs_length=256, max_len=8)
    return mean(score(w.answer(valid, constrained=bool(getattr(valid.task, 'labels', ()))))),time.time()-t

def main():
    p = parser(__doc__)
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--steps', type=int, default=150, help='of 8 packed rows of 256 tokens')
    p.add_argument('--lr', type=float, default=5e-3, help='peak rate of Adafactor, relative to the size of a weight')
    p.add_argument('--most', type=int, default=1000, help='validation examples of a task')
    p.add_argument('--model', default='t5-compact', help='name or folder')
    p.add_argument('--tasks', default=','.join(TASKS))
    a = p.parse_args()
    import torch
    from ulmfit_t5.all import get_task,most,validation_examples
    torch.set_num_threads(a.threads)
    began,rows,all_ = time.time(),[],{}
    if a.quick: a.seeds,a.steps,a.most = 1,2,20
    for name in a.tasks.split(','):
        train,valid = get_task(name).load('train'),most(validation_examples(name), a.most)
        if a.quick: train = most(train, 64)
        ours,scratch,base,pair = [],[],tfidf(train, valid),tfidf(train, valid, SIDES[name])
        for seed in range(a.seeds):
            for start,got in ((a.model,ours),(None,scratch)):
                got.append(fit(a, start, train, valid, seed))
                print(f'{name} seed {seed} {start or "scratch"}: {got[-1][0]:.1f} in {got[-1][1]:.0f} s; TF-IDF {base:.1f}, of both sides {pair:.1f}', flush=True)
        o,s = ([x for x,_ in g] for g in (ours,scratch))
        all_[name] = statistics.mean(o),statistics.mean(s),base,pair
        note = f'sd {statistics.pstdev(o):.1f}, from scratch {statistics.pstdev(s):.1f} over {a.seeds} seeds; {a.steps} steps, {len(valid)} validation examples'
        rows += _rows(f'T5 fine-tuned, score on {name}', *all_[name], note)
    rows += _rows(f'T5 fine-tuned, mean score of {len(all_)} tasks', *(statistics.mean(v[i] for v in all_.values()) for i in range(4)), '')
    write('t5_tasks', a, rows, time.time()-began)

def _rows(what, ours, scratch, base, pair, note):
    rel = lambda x: (100-x)/max(100-ours, 1e-9)
    return [line(what, ours, scratch, rel(scratch), '', 'higher', 'the same model from scratch', note),
        line(what, ours, base, rel(base), '', 'higher', 'TF-IDF of the input + linear model', 'all labels'),
        line(what, ours, pair, rel(pair), '', 'higher', 'TF-IDF of both sides + linear model', 'all labels')]

if __name__=='__main__': main()
