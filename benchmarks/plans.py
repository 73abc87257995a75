"""Which plan stage C should have with few labels: candidates compared on held-out texts of the bundled sample's training half (never its test
half), over several draws of the labelled texts. Stage B is done once, on all training texts. TF-IDF + logistic regression beside them."""
import statistics,tempfile,time
from pathlib import Path
from common import line,parser,write

def epochs(steps, spe): return steps/spe

def plans():
    "Candidates: (parameter groups, batches an epoch) -> `UnfreezeSchedule`"
    from ulmfit_t5.all import UnfreezeSchedule as U,classifier_schedule
    def full(lr, factor, steps): return lambda n,spe: U.full(n, epochs(steps, spe), lr=lr, factor=factor)
    def gradual(lr, factor, each, last): return lambda n,spe: U.gradual(n, epochs(each, spe), epochs(last, spe), lr=lr, factor=factor)
    res = {'the default': classifier_schedule}
    for lr,factor,steps in (4e-3,1.3,200),(2e-3,1.3,300): res[f'all at once, {lr:g}, factor {factor}, {steps} steps'] = full(lr, factor, steps)
    for lr,factor,each,last in (4e-3,1.3,10,200),(1e-2,2.6,20,250): res[f'gradual, {lr:g}, factor {factor}, {each} + {last} steps'] = gradual(lr, factor, each, last)
    return res

def stage_b(a, texts, folder):
    from ulmfit_t5.all import LineProgress,TextDataLoaders,TimeBudget,language_model_learner,lm_schedule
    dls = TextDataLoaders.from_list(texts, is_lm=True, valid_pct=.02, bs=32, progress=False)
    learn = language_model_learner(dls, 'awd-lstm-fwd', drop_mult=.2, verbose=False)
    learn.fit_unfreeze(lm_schedule(len(learn.model.groups())), cbs=[LineProgress(every_s=30),TimeBudget(60*a.lm_minutes, say=None)])
    learn.save(folder)

def error(few, dev, plan, start, drop, seed, bs=16, budget=None):
    "Share of `dev` that a classifier gets wrong, and the seconds its training took"
    import pandas as pd
    from ulmfit_t5.all import TextDataLoaders,TimeBudget,seed_everything,text_classifier_learner
    seed_everything(seed)
    df = pd.concat([few.assign(is_valid=False), dev[:32].assign(is_valid=True)])
    dls = TextDataLoaders.from_df(df, valid_col='is_valid', bs=bs, seed=seed, progress=False)
    learn,t = text_classifier_learner(dls, start, drop_mult=drop, verbose=False),time.time()
    with learn.no_logging(),learn.no_bar(): learn.fit_unfreeze(plan(len(learn.model.groups()), len(dls.train)), cbs=budget and [TimeBudget(budget, say=None)])
    t = time.time()-t
    got = learn.predictor().probs(dev.text.tolist()).argmax(1)
    return float((dev.label.map({l:i for i,l in enumerate(learn.labels)}).to_numpy()!=got).mean()),t

def main():
    p = parser(__doc__)
    p.add_argument('--n-per-class', type=int, default=10)
    p.add_argument('--seeds', type=int, default=3, help='draws of the labelled texts')
    p.add_argument('--dev', type=int, default=1000, help='held-out texts')
    p.add_argument('--lm-minutes', type=float, default=2, help='time for stage B')
    p.add_argument('--drops', default='.3', help='dropout multipliers')
    p.add_argument('--only', default='', help='plans whose names hold this')
    p.add_argument('--scratch', action='store_true', help='the same plans for the network from random weights')
    a = p.parse_args()
    import torch
    from ulmfit_t5.all import few_shot,load_dataset
    from ulmfit_t5.demo import tfidf_error
    torch.set_num_threads(a.threads)
    began,rows,train = time.time(),[],load_dataset('dbpedia', 'train')
    dev = train.sample(50 if a.quick else a.dev, random_state=1)
    pool = train.drop(dev.index)
    draws = [few_shot(pool, n_per_class=a.n_per_class, seed=s) for s in range(1 if a.quick else a.seeds)]
    base = statistics.mean(tfidf_error(f, dev)['error'] for f in draws)
    with tempfile.TemporaryDirectory() as d:
        start = None if a.scratch else Path(d)/'lm'
        if a.quick: a.lm_minutes = .02
        if start: stage_b(a, train.text[:300 if a.quick else None].tolist(), start)
        for name,plan in list(plans().items())[:1 if a.quick else None]:
            if a.only not in name: continue
            for drop in map(float, a.drops.split(',')):
                es = [error(f, dev, plan, start, drop, s, budget=1 if a.quick else None) for s,f in enumerate(draws)]
                mean,sd = statistics.mean(e for e,_ in es),statistics.pstdev(e for e,_ in es)
                note = f"sd {100*sd:.1f} over {len(es)} draws of {a.n_per_class} labels a class, {statistics.mean(t for _,t in es):.0f} s each, {len(dev)} held-out texts"
                what = f"{'from scratch: ' if a.scratch else ''}{name}, dropout x{drop:g}"
                rows.append(line(what, 100*mean, 100*base, base/max(mean, 1e-9), '% error', 'lower', 'TF-IDF + logistic regression', note))
    write('plans_scratch' if a.scratch else 'plans', a, rows, time.time()-began)

if __name__=='__main__': main()
