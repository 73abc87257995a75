"""How a short pretraining of T5 should begin: held-out loss of span corruption after the same minutes, as the text is and with the words of each input in another order, by what is learnt first, batch, optimizer
and start of the embedding. Reads Wikipedia in $ULMFIT_T5_DATA; the peer of each row is span corruption from the first step."""
import time
from common import line,parser,write

SPANS = 'span_3_15_u_u'
WAYS = {'span corruption only':dict(), 'in small batches':dict(bs=4), 'AdamW at 2e-3':dict(opt='adamw', lr=2e-3), 'embedding from random numbers':dict(embed=''),
    'BERT-style in small batches first':dict(first='bert', bs=4)} # what each changes

def held_out(a, corpus, valid, tok, folder, first=SPANS, bs=16, opt='adafactor', lr=2e-2, embed='awd-lstm-fwd'):
    "The run after `a.seconds`, of which three fifths are for `first` where that is another objective; then losses as it is and shuffled"
    from ulmfit_t5.all import Adafactor,load_t5,seed_everything
    from ulmfit_t5.data.objectives import SpecialIds
    from ulmfit_t5.pretrain_t5 import T5Run,begin_with,corpus_data,shuffled
    from ulmfit_t5.train.run import adamw
    seed_everything(0)
    model = load_t5(None, tok, p=0., **(dict(d_model=256, n_layers=1) if a.quick else {}))
    if embed: begin_with(model, embed)
    parts = [(SPANS,1.,lr,128)] if first==SPANS else [(first,.6,lr,64),(SPANS,.4,lr/2,128)]
    steps = 0
    for i,(objective,share,rate,n) in enumerate(parts):
        data,batches = corpus_data(corpus, valid, tok, objective, n, 2 if a.quick else bs, 0)
        run = T5Run(folder/str(i), model, data, batches[:1] if a.quick else batches, lr=rate, clip=0. if opt=='adafactor' else 1., budget=a.seconds*share,
            opt_func=dict(adafactor=Adafactor, adamw=adamw)[opt])
        run.train(save_every=1e9, verbose=False)
        steps += run.step
    return run.evaluate(),run.evaluate([shuffled(b, SpecialIds.of(tok)) for b in run.valid]),steps

def main():
    p = parser(__doc__)
    p.add_argument('--seconds', type=float, default=660, help='for each way')
    p.add_argument('--ways', default=','.join(WAYS), help='which to run; the first is the peer')
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
        for i,k in enumerate(a.ways.split(',')[::4 if a.quick else 1]):
            res[k] = held_out(a, corpus, valid, tok, Path(d)/str(i), **WAYS[k])
            print(k, res[k], flush=True)
    base,rows = next(iter(res.values())),[]
    for k,(loss,mixed,steps) in res.items():
        rows.append(line(f'held-out loss of span corruption after {a.seconds:g} s, {k}', loss, base[0], base[0]/loss, 'nats', 'lower', 'span corruption only', f'{steps} steps'))
        rows.append(line(f'the same with the words of each input shuffled, {k}', mixed, loss, mixed/loss, 'nats', 'higher', 'the same model, words in order', 'above 1: it reads in order'))
    write('t5_start', a, rows, time.time()-began)

if __name__=='__main__': main()
