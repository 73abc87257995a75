"""How a short pretraining of T5 should begin: held-out loss of span corruption after the same few minutes, by optimizer, peak rate and start of the
embedding. Reads Wikipedia in $ULMFIT_T5_DATA; the peer of each row is AdamW at its best rate from random weights."""
import time
from common import line,parser,write

WAYS = {'AdamW 1e-3':('adamw',1e-3,''), 'AdamW 3e-3':('adamw',3e-3,''), 'Adafactor 1e-2':('adafactor',1e-2,''), 'Adafactor 3e-2':('adafactor',3e-2,''),
    'AdamW 2e-3, embedding of the language model':('adamw',2e-3,'awd-lstm-fwd'), 'Adafactor 2e-2, embedding of the language model':('adafactor',2e-2,'awd-lstm-fwd')}

def held_out(a, way, corpus, valid, tok, folder):
    "Loss on held-out text after `a.seconds`"
    from ulmfit_t5.all import Adafactor,load_t5,seed_everything
    from ulmfit_t5.pretrain_t5 import T5Run,begin_with,corpus_data
    from ulmfit_t5.train.run import adamw
    opt,lr,embed = way
    seed_everything(0)
    model = load_t5(None, tok, p=0., **(dict(d_model=256, n_layers=1) if a.quick else {}))
    if embed: begin_with(model, embed)
    data,batches = corpus_data(corpus, valid, tok, 'span_3_15_u_u', 128, 2 if a.quick else 16, 0)
    run = T5Run(folder, model, data, batches[:1] if a.quick else batches, lr=lr, clip=0. if opt=='adafactor' else 1., budget=a.seconds,
        opt_func=dict(adafactor=Adafactor, adamw=adamw)[opt])
    run.train(save_every=1e9, verbose=False)
    return run

def main():
    p = parser(__doc__)
    p.add_argument('--seconds', type=float, default=150, help='for each way')
    a = p.parse_args()
    import tempfile,torch
    from pathlib import Path
    from ulmfit_t5.all import bundled_tokenizer,data_home,keep_freed_memory,tokenize_corpus
    from ulmfit_t5.pretrain import first_documents
    torch.set_num_threads(a.threads)
    keep_freed_memory()
    began,tok,home,res = time.time(),bundled_tokenizer(),data_home()/'wikipedia-en-2015',{}
    if a.quick: a.seconds = 1
    with tempfile.TemporaryDirectory() as d:
        corpus,valid = (tokenize_corpus(first_documents(home/f, n), tok, Path(d)/'corpora', key=f) for f,n in (('train-00.txt.xz',20 if a.quick else 0),('valid.txt.xz',5 if a.quick else 0)))
        for i,(k,way) in enumerate(list(WAYS.items())[::5 if a.quick else 1]):
            run = held_out(a, way, corpus, valid, tok, Path(d)/str(i))
            res[k] = run.log[-1]['valid'],run.step
            print(k, res[k], flush=True)
    base = min(v for k,(v,_) in res.items() if k.startswith('AdamW') and 'embedding' not in k)
    rows = [line(f'held-out loss of span corruption after {a.seconds:g} s, {k}', v, base, base/v, 'nats', 'lower', 'AdamW at its best rate', f'{n} steps of 16 x 128 tokens')
        for k,(v,n) in res.items()]
    write('t5_start', a, rows, time.time()-began)

if __name__=='__main__': main()
