"""How much the adapted language model knows of IMDb's labels before it is fine-tuned: logistic regression on its pooled states (last, maximum, mean), against TF-IDF + logistic regression.

Takes the folder of a language model that `imdb_labels.py --lm` left; without one, the bundled model, which has seen no review. Needs the reviews in $ULMFIT_T5_DATA.
"""
import time
from common import line,parser,write

def pooled(saved, texts):
    "States of each text, pooled (n 3e)"
    import torch
    from ulmfit_t5.inference import length_batches,pad_rows
    from ulmfit_t5.models.heads import DocumentEncoder
    enc,ids = DocumentEncoder(saved.lm.encoder).eval(),saved.tok.encode_batch(list(texts))
    out = torch.zeros(len(ids), enc.n_ftrs)
    with torch.inference_mode():
        for b in length_batches([len(o) for o in ids], 8192): out[b] = enc(pad_rows([ids[i] for i in b]))
    return out.numpy()

def error(x, y, z, t):
    "Share of wrong answers for `z`, its strength of regularisation chosen by folds of `x`"
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    m = make_pipeline(StandardScaler(), LogisticRegressionCV(Cs=[1e-4,1e-3,1e-2,.1,1.], cv=5, scoring='accuracy', max_iter=2000))
    return float((m.fit(x, y).predict(z)!=t).mean())

def main():
    p = parser(__doc__)
    p.add_argument('--labels', default='100,500,1000', help='numbers of labels')
    p.add_argument('--lm', default='awd-lstm-fwd', help='folder of a language model, or the name of a bundled one')
    p.add_argument('--seed', type=int, default=0)
    a = p.parse_args()
    import torch
    from ulmfit_t5.all import few_shot,load_dataset,load_language_model
    from ulmfit_t5.demo import tfidf_error
    torch.set_num_threads(a.threads)
    began,rows,saved = time.time(),[],load_language_model(a.lm)
    train,test = load_dataset('imdb', 'train'),load_dataset('imdb', 'test').sample(20 if a.quick else 5000, random_state=a.seed)
    pool = train.drop(train.sample(8 if a.quick else 64, random_state=a.seed+1).index) # the texts that `imdb_labels.py` has
    z = pooled(saved, test.text)
    for n in [int(o) for o in a.labels.split(',')][:1 if a.quick else None]:
        few = few_shot(pool, n_total=n, seed=a.seed)
        ours,base = error(pooled(saved, few.text), few.label.values, z, test.label.values),tfidf_error(few, test)['error']
        rows.append(line(f'IMDb test error, {n} labels, frozen language model + logistic regression', 100*ours, 100*base, base/max(ours, 1e-9), '%', 'lower', 'TF-IDF + logistic regression', f'{len(test):,} test reviews'))
    write('imdb_frozen', a, rows, time.time()-began)

if __name__=='__main__': main()
