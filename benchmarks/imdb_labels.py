"""Test error on IMDb with few labels: ULMFiT from the bundled model, the same network from scratch with ten times the labels, TF-IDF + logistic regression.

The language model is adapted once, to a seeded part of the reviews without labels, and serves every number of labels. Needs the reviews in $ULMFIT_T5_DATA.
"""
import time
from common import line,parser,write

def stage_b(a, texts, folder, minutes):
    "Passes over `texts` of the bundled language model, adapted to reviews and saved in `folder`; those of an earlier run where it stands there already"
    seen = folder/'passes.txt'
    if seen.exists(): return float(seen.read_text())
    from ulmfit_t5.all import LineProgress,TextDataLoaders,language_model_learner,lm_schedule,TimeBudget
    dls = TextDataLoaders.from_list(texts, is_lm=True, valid_pct=.02, bs=a.bs, progress=False)
    learn = language_model_learner(dls, 'awd-lstm-fwd', drop_mult=.2)
    plan = lm_schedule(len(learn.model.groups()), 3)
    learn.fit_unfreeze(plan, cbs=[LineProgress(every_s=30),TimeBudget(60*minutes)])
    learn.save(folder)
    passes = len(learn.group_rates)/len(dls.train)
    seen.write_text(f'{passes:.3f}')
    return passes

def classifier(a, few, valid, start, minutes, **kw):
    "A classifier trained on `few`, from the language model in `start` or from scratch"
    import pandas as pd
    from ulmfit_t5.all import LineProgress,TextDataLoaders,ULMFiT
    df = pd.concat([few.assign(is_valid=False), valid.assign(is_valid=True)])
    dls = TextDataLoaders.from_df(df, valid_col='is_valid', bs=32, progress=False)
    return ULMFiT(dls, pretrained=start, lm_plan=False, **kw).fit(60*minutes, cbs=[LineProgress(every_s=30)])

def main():
    p = parser(__doc__)
    p.add_argument('--labels', default='100,500,1000', help='numbers of labels')
    p.add_argument('--unlabelled', type=int, default=20_000, help='reviews without labels for stage B')
    p.add_argument('--lm-minutes', type=float, default=12, help='time for stage B')
    p.add_argument('--bs', type=int, default=64, help='streams side by side in stage B')
    p.add_argument('--minutes', type=float, default=4, help='time for each classifier')
    p.add_argument('--lm', help="folder of a language model adapted by an earlier run with the same seed; made there if there is none")
    p.add_argument('--seed', type=int, default=0)
    a = p.parse_args()
    import tempfile,torch
    from pathlib import Path
    from ulmfit_t5.all import few_shot,load_dataset
    from ulmfit_t5.demo import tfidf_error
    torch.set_num_threads(a.threads)
    began,rows = time.time(),[]
    train,test = load_dataset('imdb', 'train'),load_dataset('imdb', 'test').sample(20 if a.quick else 5000, random_state=a.seed)
    valid = train.sample(8 if a.quick else 64, random_state=a.seed+1)
    lm_texts = load_dataset('imdb', 'unsup').text.sample(100 if a.quick else a.unlabelled, random_state=a.seed)
    pool,lm_min,c_min = train.drop(valid.index),.02 if a.quick else a.lm_minutes,.02 if a.quick else a.minutes
    with tempfile.TemporaryDirectory() as d:
        start = Path(a.lm or Path(d)/'lm')
        epochs = stage_b(a, [*lm_texts, *pool.text.sample(10 if a.quick else 5000, random_state=a.seed)], start, lm_min)
        for n in [int(o) for o in a.labels.split(',')][:1 if a.quick else None]:
            few,many = (few_shot(pool, n_total=k, seed=a.seed) for k in (n, min(10*n, 20_000)))
            base,ulm = tfidf_error(few, test),classifier(a, few, valid, start, c_min, drop=.3).evaluate(test)
            scratch = classifier(a, many, valid, None, c_min, drop=.3).evaluate(test)
            note = f"95 % interval {100*ulm['low']:.1f} to {100*ulm['high']:.1f}; stage B {epochs:.2g} passes over {len(lm_texts):,} reviews"
            rows.append(line(f'IMDb test error, {n} labels', 100*ulm['error'], 100*base['error'], base['error']/max(ulm['error'], 1e-9), '%', 'lower', 'TF-IDF + logistic regression', note))
            rows.append(line(f'IMDb test error, {n} labels', 100*ulm['error'], 100*scratch['error'], scratch['error']/max(ulm['error'], 1e-9), '%', 'lower',
                f'from scratch, {len(many):,} labels, as many minutes'))
    write('imdb_labels', a, rows, time.time()-began)

if __name__=='__main__': main()
