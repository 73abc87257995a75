"""Cleaning by C4's rules, megabytes of text (a million characters) a second of processor time on one core: ours, and datatrove's C4 filters on the same texts.

The texts are Wikipedia's in `$ULMFIT_T5_DATA`, else the bundled DBpedia texts put together; a tenth of the pages has a menu, a notice and a citation more. Before
anything is timed, both sides judge the same pages by the same rules, and the share of equal answers is reported. datatrove counts sentences by spaCy's tokenizer,
which takes nearly all of its time, so the rules are also timed without that one. Duplicates and languages are timed for ours alone, in memory."""
import random,time
from importlib.util import find_spec
from itertools import islice
from common import HERE,line,parser,review_texts,run
from ulmfit_t5.core import data_home
from ulmfit_t5.data.cleaning import C4_CODE_RULES,C4_RULES,Cleaner
from ulmfit_t5.data.corpus import read_documents

LINES,WHOLE = C4_CODE_RULES[:7],C4_CODE_RULES[:8]
DIRT = 'Home | About | Log in\nPlease enable JavaScript to see all of this page.\nIt was said so before.[12]\n'
BAD = [f'bad{i}' for i in range(380)]+['bad word','b@d','worse than bad'] # about as many as the list that the paper used

def pages(a):
    "Texts of about 12 MB, and what they are"
    fn = (data_home() or HERE)/'wikipedia-en-2015'/'train-00.txt.xz'
    n,rng = 30 if a.quick else 600,random.Random(0)
    docs,what = (list(islice(read_documents(fn), n)),'Wikipedia') if fn.exists() else (review_texts(n)[0],'texts of the bundled sample')
    return [DIRT+o if rng.random()<.1 else o for o in docs],what

def rate(f, docs, least):
    "Million characters a second of processor time"
    f(docs[0])
    n,t = 0,time.process_time()
    while (took := time.process_time()-t)<least or not n:
        for d in docs:
            f(d)
            n += len(d)
            if time.process_time()-t>8*least: break
    return n/took/1e6

def ours(rules, **kw): return Cleaner(rules, **kw)

def theirs(**kw):
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter
    f = C4QualityFilter(min_words_per_line=5, **kw)
    def _inner(text):
        d = Document(text=text, id='')
        return d.text if f.filter(d) is True else None
    return _inner

def our_job(a):
    docs,what = pages(a)
    least,some = (.05,docs[:3]) if a.quick else (3,docs)
    r = dict(what=what, mb=sum(map(len, docs))/1e6, n=len(docs))
    r |= {k:rate(ours(v), docs, least) for k,v in (('lines',LINES),('whole',WHOLE))}
    r['paper'] = rate(ours(C4_RULES, skip='language,duplicate_spans', bad_words=BAD), docs, least)
    r['spans'] = rate(ours(C4_RULES, skip='language', bad_words=BAD), docs, least)
    if find_spec('langdetect'): r['language'] = rate(ours('language'), some, least)
    return r

def their_job(a):
    docs,_ = pages(a)
    least,some = (.05,docs[:3]) if a.quick else (3,docs[:100])
    mine,peer = ours(WHOLE),theirs(min_num_sentences=3)
    same = sum(mine(o)==peer(o) for o in some)/len(some)
    return dict(lines=rate(theirs(min_num_sentences=-1), docs, least), whole=rate(peer, some, least), same=same, checked=len(some))

def rows(res, a):
    r,p = res['ours'][0],res['datatrove'][0]
    unit,note = 'million characters a second',f'{r["n"]} pages of {r["what"]}, {r["mb"]:.1f} MB; '
    out = [res.row('cleaning web pages by C4\'s rules for lines and pages, sentences not counted', 'ours', 'datatrove', 'lines', unit, note=f'{note}C4QualityFilter'),
        res.row('the same with sentences counted', 'ours', 'datatrove', 'whole', unit, note=f'{p["same"]:.1%} of {p["checked"]} pages come out the same'),
        line('the ten rules without language and duplicates', res.med('ours', 'paper'), None, None, unit, note=f'{len(BAD)} bad words'),
        line('with duplicate spans, in memory', res.med('ours', 'spans'), None, None, unit)]
    if 'language' in r: out.append(line('language alone (langdetect)', res.med('ours', 'language'), None, None, unit))
    return out

if __name__=='__main__':
    if not find_spec('datatrove'): raise SystemExit("this benchmark needs the peer: pip install 'ulmfit_t5[clean]'")
    a = parser(__doc__).parse_args()
    a.threads = 1
    run(__file__, a, {'ours':our_job,'datatrove':their_job}, rows)
