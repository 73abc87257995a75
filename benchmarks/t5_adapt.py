"""Does adapting T5 to the target corpus before fine-tuning help? IMDb with few labels: the bundled T5 fine-tuned at once, and fine-tuned after a
few minutes of span corruption on reviews without labels; TF-IDF + logistic regression beside them. Needs the reviews in $ULMFIT_T5_DATA.
The bundled model has read the labels of SST-2, sentences of film reviews, so it knows of sentiment before; the TF-IDF beside it does not."""
import statistics,time
from common import line,parser,write

def adapt(a, texts, folder):
    "The bundled T5 after span corruption on `texts`, saved in `folder`; returns the share of a pass that it had time for"
    from ulmfit_t5.all import LineProgress,TimeBudget,UnfreezeSchedule,span_corruption_learner
    learn = span_corruption_learner(texts, a.model, config=dict(p=0.), data=dict(inputs_length=256, bs=8, valid_pct=.02, seed=0), lr=5e-3)
    plan = UnfreezeSchedule.full(len(learn.model.groups()), 1, lr=5e-3, factor=1., name='span corruption')
    with learn.no_logging(), learn.no_bar(): learn.fit_unfreeze(plan, cbs=[LineProgress(every_s=60),TimeBudget(60*a.adapt_minutes)])
    print('held-out loss and perplexity', learn.validate(), flush=True)
    learn.save(folder)
    return len(learn.group_rates)/len(learn.dls.train)

def error(a, start, few, test, seed):
    "Test error in per cent after fine-tuning on `few`"
    from ulmfit_t5.all import LineProgress,Text2TextDataLoaders,TextWriter,UnfreezeSchedule,classification_task,score,seed_everything,text2text_learner
    from ulmfit_t5.data.tokenizer import load_tokenizer
    from ulmfit_t5.artefacts import model_path
    seed_everything(seed)
    task,tok = classification_task(few, name='imdb', labels=['negative','positive'], metrics=('accuracy',)),load_tokenizer(model_path(a.model))
    train,valid = task.examples(few, train=True),task.examples(test)
    look = task.examples(test[:50]) # only to show that it learns
    dls = Text2TextDataLoaders.from_examples(dict(imdb=train), dict(imdb=look), tok, inputs_length=a.length, targets_length=8, bs=8, seed=seed)
    learn = text2text_learner(dls, start, lr=a.lr)
    plan = UnfreezeSchedule.full(len(learn.model.groups()), a.steps/len(dls.train), lr=a.lr, factor=1., name='all at once')
    with learn.no_logging(), learn.no_bar(): learn.fit_unfreeze(plan, cbs=[LineProgress(every_s=60)])
    w = TextWriter(learn.model, tok, task=task, inputs_length=a.length, max_len=8)
    return 100-score(w.answer(valid, constrained=True)).mean

def tfidf(few, test):
    "Test error in per cent of logistic regression on TF-IDF of words"
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    m = make_pipeline(TfidfVectorizer(ngram_range=(1,2), sublinear_tf=True), LogisticRegression(C=10., max_iter=1000))
    return 100*float((m.fit(few.text, few.label).predict(test.text)!=test.label).mean())

def main():
    p = parser(__doc__)
    p.add_argument('--labels', default='100,1000', help='numbers of labels')
    p.add_argument('--unlabelled', type=int, default=10_000, help='reviews without labels')
    p.add_argument('--adapt-minutes', type=float, default=8, help='of span corruption on them')
    p.add_argument('--steps', type=int, default=100, help='of fine-tuning, 8 reviews each')
    p.add_argument('--length', type=int, default=256, help='tokens of a review; the rest is cut, for both')
    p.add_argument('--lr', type=float, default=5e-3, help='peak rate of Adafactor')
    p.add_argument('--seeds', type=int, default=3)
    p.add_argument('--test', type=int, default=1500, help='test reviews')
    p.add_argument('--model', default='t5-compact', help='name or folder')
    a = p.parse_args()
    import tempfile,torch
    from pathlib import Path
    from ulmfit_t5.all import few_shot,load_dataset
    torch.set_num_threads(a.threads)
    began,rows = time.time(),[]
    if a.quick: a.labels,a.unlabelled,a.adapt_minutes,a.steps,a.seeds,a.test,a.length = '20',60,.05,2,1,20,32
    words = dict(neg='negative', pos='positive')
    train,test = (df.assign(label=df.label.map(words)) for df in (load_dataset('imdb', 'train'),load_dataset('imdb', 'test').sample(a.test, random_state=0)))
    texts = load_dataset('imdb', 'unsup').text.sample(a.unlabelled, random_state=0).tolist()
    with tempfile.TemporaryDirectory() as d:
        share = adapt(a, texts, Path(d)/'adapted')
        for n in map(int, a.labels.split(',')):
            got = dict(direct=[], adapted=[], tfidf=[])
            for seed in range(a.seeds):
                few = few_shot(train, n_total=n, seed=seed)
                got['tfidf'].append(tfidf(few, test))
                for k,start in (('direct',a.model),('adapted',Path(d)/'adapted')): got[k].append(error(a, start, few, test, seed))
                print(n, 'labels, seed', seed, {k:round(v[-1], 1) for k,v in got.items()}, flush=True)
            m = {k:statistics.mean(v) for k,v in got.items()}
            sd = ', '.join(f'{k} sd {statistics.pstdev(v):.1f}' for k,v in got.items())
            note = f'{sd}; {a.seeds} seeds, {len(test)} test reviews, {a.length} tokens of each; adapted for {share:.2f} of a pass over {len(texts):,} reviews'
            for peer,name in (('direct','the same without adapting'),('tfidf','TF-IDF + logistic regression')):
                rows.append(line(f'T5, IMDb test error, {n} labels, adapted first', m['adapted'], m[peer], m[peer]/max(m['adapted'], 1e-9), '%', 'lower', name, note))
    write('t5_adapt', a, rows, time.time()-began)

if __name__=='__main__': main()
