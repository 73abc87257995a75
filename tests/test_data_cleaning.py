"C4's rules one by one, what must hold for any text, the same answers as datatrove's filters, and whole corpora by each executor"
import gzip,json,lzma,os,random,re,sys,tempfile
from itertools import islice
import pandas as pd,pytest
from fastcore.script import anno_parser
from hypothesis import given,settings,strategies as st
from conftest import run
from ulmfit_t5.core import bundled
from ulmfit_t5.data.cleaning import C4_CODE_RULES,C4_RULES,RULES,BadWords,Cleaner,DuplicateSpans,clean_texts,page_lines,read_rules,sentence_spans
from ulmfit_t5.data.cleaning_pipeline import clean,cleaning_report
from ulmfit_t5.data.cleaning_report import CleaningReport
from ulmfit_t5.data.corpus import read_documents

opts = settings(max_examples=60, deadline=None)
GOOD = 'The ferry left the harbour at seven. It was late by an hour. Nobody on board seemed to care.'
NO_LANG = [o for o in C4_RULES if o!='language']
PAGE_RULES = [o for o in NO_LANG if o not in ('bad_words','duplicate_spans')]

EXAMPLES = [('terminal_punctuation', 'A full stop.\nMenu | Login\nReally?\nYes!\nHe said "no"\n“So.”\nRead on...', 'A full stop.\nReally?\nYes!\nHe said "no"\n“So.”'),
    ('min_words', 'Just four words here.\nThis line has five words.', 'This line has five words.'), ('min_words=2', 'One.\nOne two.', 'One two.'),
    ('min_sentences', 'One here. Two here. Three here.', 'One here. Two here. Three here.'), ('min_sentences', 'One here. Two here, e.g. this.', None),
    ('min_sentences=1', 'One', 'One'), ('bad_words', 'That is a darn shame.', None), ('bad_words', 'He was darning socks.', 'He was darning socks.'),
    ('javascript', 'Turn on JavaScript.\nTurn right.', 'Turn right.'), ('javascript', 'Only javascript', None),
    ('lorem_ipsum', 'Good text.\nLOREM IPSUM dolor', None), ('lorem_ipsum', 'Lorem\nipsum', 'Lorem\nipsum'),
    ('curly_bracket', 'Good text.\nx = {}', None), ('curly_bracket', 'a[1] (b) <c>', 'a[1] (b) <c>'),
    ('citations', 'Fact.[1][22] More.[citation needed] [edit] a[b]', 'Fact. More.  a[b]'), ('citations', '[3]', None),
    *[('policy', f'Our {p.title()} here.\nKept.', 'Kept.') for p in ('terms of use','privacy policy','cookie policy','uses cookies','use of cookies','use cookies')],
    ('duplicate_spans', 'Aa b. Cc d. Ee f. Gg h. AA b.  cc d. ee f.', 'Aa b. Cc d. Ee f. Gg h. AA b.  cc d. ee f.'),
    ('duplicate_spans', 'Aa b. Cc d. Ee f. Gg h. AA b.  Cc d. EE f.', 'Aa b. Cc d. Ee f. Gg h.'), ('duplicate_spans=2', 'Aa. Bb. Aa. Bb.', 'Aa. Bb.')]

@pytest.mark.parametrize('rule,text,left', EXAMPLES, ids=range(len(EXAMPLES)))
def test_examples(rule, text, left):
    "One rule alone, on one page"
    assert Cleaner(rule, bad_words=['darn'])(text)==left

def test_ten_rules(): assert sorted({RULES[o].number for o in C4_RULES})==[*range(1, 11)] and set(C4_RULES)==set(C4_CODE_RULES)==set(RULES)

def test_language():
    pytest.importorskip('langdetect')
    pages = [GOOD, 'Die Fähre verließ den Hafen um sieben. Sie war spät dran. Niemanden an Bord schien das zu stören.', '1. 2. 3.']
    for lang,i in (('en',0),('de',1),('de>0.5',1)): assert clean_texts(pages, f'language={lang}')[0]==[pages[i]]
    assert [Cleaner('language')(GOOD) for _ in range(5)]==[GOOD]*5
    with pytest.raises(ValueError, match="'english' is not one"): Cleaner('language=english')

def test_the_order_decides():
    "A citation does not hide a full stop; a bracket in a line that goes anyway condemns the page by the paper's words and not by its code"
    assert Cleaner(PAGE_RULES)(GOOD+'[1]')==GOOD
    menu = '{menu}\n'+GOOD
    assert Cleaner(PAGE_RULES)(menu) is None
    assert Cleaner([o for o in C4_CODE_RULES if o in PAGE_RULES])(menu)==GOOD

# Any text

words = st.sampled_from('Lorem ipsum javascript { [1] [ ] the a Cat dog. Why? No! "Yes." privacy policy use cookies ... Mr. J. e.g. 12 é \u2028 \x0b darn D@rn'.split(' '))
pieces = st.lists(st.one_of(words, st.sampled_from(['\n','\n\n','. ',' ','\r\n','One two three four five six. ','Seven is a number. ']), st.text(max_size=4)), max_size=30)
texts = st.one_of(pieces.map(' '.join), pieces.map(''.join), st.text())

@opts
@given(text=texts)
def test_once_is_enough(text):
    "What is left of a page stays as it is"
    c = Cleaner([*PAGE_RULES,'bad_words'], bad_words=['darn','d@rn'])
    if (left:=c(text)) is not None: assert left and c(left)==left

@opts
@given(pages=st.lists(texts, max_size=8), rules=st.lists(st.sampled_from([*NO_LANG,'min_words=1','min_sentences=2','duplicate_spans=1']), max_size=9))
def test_counts_add_up(pages, rules):
    kept,r = clean_texts(pages, rules, bad_words=['darn'], n_samples=2)
    lines = [page_lines(o) for o in pages]
    assert (r.n_read,r.n_kept)==(len(pages),len(kept))
    assert (r.read['lines'],r.read['chars'])==(sum(map(len, lines)),sum(len(l) for p in lines for l in p))
    assert r.kept['chars']==sum(len(l) for o in kept for l in page_lines(o))
    for k in ('pages','lines','chars'): assert r.read[k]==r.kept[k]+sum(c[k] for c in r.counts.values())
    for k,c in r.counts.items(): assert c['touched']>=c['pages'] and len(r.samples[k])==(0 if k=='empty' else min(2, c['touched']))
    assert CleaningReport.from_dict(json.loads(json.dumps(r.to_dict()))).to_dict()==r.to_dict()
    assert len(r.table())==len(set(n for n,_ in read_rules(rules)))+2+bool(r.counts['empty']['pages'])

@opts
@given(text=texts)
def test_sentences_cover_the_text(text):
    spans = sentence_spans(text)
    assert [a for a,_ in spans]==sorted(a for a,_ in spans) and all(a<b for a,b in spans)
    rest = ''.join(text[b:a] for (_,b),(a,_) in zip([(0,0),*spans], [*spans,(len(text),0)]))
    assert not rest.strip()
    assert RULES['min_sentences']()(text.strip())==(len(sentence_spans(text.strip()))>=3)

@opts
@given(pages=st.lists(st.lists(st.sampled_from('ABCDE'), max_size=8), max_size=6), n=st.integers(1, 4))
def test_duplicates_by_brute_force(pages, n):
    "Every span that came before is gone, and nothing else"
    f,seen = DuplicateSpans(n),set()
    for p in pages:
        drop = set()
        for i in range(len(p)-n+1):
            if (s:=tuple(p[i:i+n])) in seen: drop |= {*range(i, i+n)}
            seen.add(s)
        assert f(' '.join(f'{o*3}.' for o in p)).split()==[f'{o*3}.' for i,o in enumerate(p) if i not in drop]

@opts
@given(a=st.lists(texts, max_size=4), b=st.lists(texts, max_size=4))
def test_reports_of_parts_add_up(a, b):
    ra,rb,whole = (clean_texts(o, PAGE_RULES)[1] for o in (a,b,a+b))
    both = ra+rb
    assert (both.counts,both.read,both.kept)==(whole.counts,whole.read,whole.kept)
    assert all(len(both.samples[k])==len(whole.samples[k]) for k in both.counts)

# What is told

def test_sentences_for_mistakes(tmp_path):
    for f,m in ((lambda: read_rules('languge'), "did you mean 'language'"), (lambda: read_rules(C4_RULES, 'policies'), "did you mean 'policy'"),
        (lambda: read_rules('zzz'), 'There are terminal_punctuation'), (lambda: Cleaner('min_words=many'), "is 'many': it is an int, such as min_words=5"),
        (lambda: Cleaner('policy=2'), 'has no option'), (lambda: BadWords([]), 'is empty'), (lambda: clean_texts([GOOD, 3], 'policy'), 'text 1 is 3, a int'),
        (lambda: clean_texts(GOOD), 'give a list'), (lambda: clean_texts([float('nan')], 'policy'), 'text 0 is nan')):
        with pytest.raises((ValueError,TypeError), match=re.escape(m)): f()
    with pytest.raises(FileNotFoundError, match='is not there'): BadWords(tmp_path/'none')
    with pytest.warns(UserWarning, match='no list was given'): r = clean_texts([GOOD], skip='language')[1]
    assert 'no list was given' in repr(r) and 'no list was given' in r._repr_html_() and 'bad_words' not in r.counts

def test_report_shows_what_went():
    r = clean_texts([f'{GOOD}\nPlease enable Javascript in your browser.\nHome', f'{GOOD}\nint main() {{ }}', ''], NO_LANG, skip='bad_words')[1]
    assert r.dropped('javascript').text.tolist()==['Please enable Javascript in your browser.']
    assert r.dropped('curly_bracket').text.tolist()==['int main() { }'] # the line that condemned the page
    t = r.table()
    assert t.pages.to_dict() | dict(read=3, kept=1, empty=1, curly_bracket=1)==t.pages.to_dict() and t.why['javascript']==RULES['javascript'].why
    import matplotlib.pyplot as plt
    axs = r.plot()
    assert len(axs)==2 and all(len(ax.patches)==2*(len(t)-2) for ax in axs)
    assert axs[0].patches[-2].get_width()==pytest.approx(100/3)
    plt.close('all')

# The peer's answers

@pytest.fixture(scope='module')
def pages():
    "Texts of the bundled sample, put together and dirtied: menus, notices, quotes, brackets, citations"
    rng,ts = random.Random(0),pd.read_csv(bundled('dbpedia14')/'train.csv.xz').text.tolist()[:400]
    dirt = ['Home | About', 'Please enable JavaScript.', 'We use cookies to make it better.', 'body { }', 'Lorem ipsum dolor sit amet est.', 'It is so.[12]', 'Oh no...',
        'Short one.', 'He asked "What is it today?"', 'Is it? No! It is not, really.', 'darn it all, said he to her.', 'this is\ta tab line here.']
    return ['\n'.join(rng.sample(ts, rng.randint(0, 2))+rng.sample(dirt, rng.randint(0, 4))) for _ in range(400)]

def quality_filter(**kw):
    pytest.importorskip('datatrove')
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter
    f = C4QualityFilter(min_words_per_line=5, **kw)
    def _inner(text):
        ok = f.filter(d:=Document(text=text, id='0'))
        return d.text if ok is True else None
    return _inner

CODE = C4_CODE_RULES[:7]

def test_lines_and_pages_as_datatrove(pages):
    "Every answer is the same, but that it counts the words of a line with its citations"
    theirs,ours = quality_filter(min_num_sentences=-1),Cleaner(CODE)
    pages = [RULES['citations']()(o) for o in pages]
    got = [(ours(o) or '',theirs(o) or '') for o in pages]
    assert all(a==b for a,b in got) and 100<sum(bool(a) for a,_ in got)<390

def test_sentence_counts_as_datatrove(pages):
    "spaCy's sentences there, one regular expression here: of a thousand pages, a few are judged otherwise"
    theirs,ours = quality_filter(min_num_sentences=3),Cleaner(C4_CODE_RULES[:8])
    got = [(ours(o) is None,theirs(o) is None) for o in pages[:200]]
    assert sum(a==b for a,b in got)/len(got)>=.98 and 20<sum(a for a,_ in got)<180

def test_wikipedia_as_datatrove(data_home):
    fn = data_home/'wikipedia-en-2015'/'test.txt.xz'
    if not fn.exists(): pytest.skip(f'{fn} is not there')
    theirs,ours = quality_filter(min_num_sentences=3),Cleaner(C4_CODE_RULES[:8])
    docs = [o.replace('”', '"').replace('’', "'") for o in islice(read_documents(fn), 10)] # it takes typographic quotes for no end
    assert sum(ours(o)==theirs(o) for o in docs)>=9

def test_bad_words_as_datatrove(pages):
    pytest.importorskip('datatrove')
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4BadWordsFilter
    bad,theirs = ['darn','he was','oh no','b[d','12','born in'],C4BadWordsFilter()
    theirs._badwords_regex['en'] = re.compile(r'(?:\W|^)({})(?:\W|$)'.format('|'.join(map(re.escape, bad)))) # else it would be downloaded
    got = [(BadWords(bad)(o),theirs.filter(Document(text=o, id='0')) is True) for o in pages]
    assert all(a==b for a,b in got) and 20<sum(a for a,_ in got)<380

# Corpora

def write_corpus(d, pages, n=3):
    "`n` files of different formats"
    d.mkdir()
    for i in range(n):
        part = pages[i::n]
        if i%2: (d/f'{i}.txt').write_text('\n\n\n'.join(part))
        else:
            with gzip.open(d/f'{i}.jsonl.gz', 'wt') as f: f.writelines(json.dumps(dict(text=o, url='x'))+'\n' for o in part)
    return d

def corpus(n=60):
    "Pages of three kinds: good ones with much in common, a menu, code"
    s = [f'Number {i} is a number that we know. It is followed by {i+1}, as you see. Some say that it is {"odd" if i%2 else "even"} too.' for i in range(n)]
    rng = random.Random(1)
    return [rng.choice([' '.join(rng.sample(s, 2)), '\n'.join(['Home | Search', *rng.sample(s, 3)]), 'f() { }', rng.choice(s)+'[3]']) for _ in range(n)]

@pytest.fixture
def no_list():
    pytest.importorskip('datatrove')
    return dict(skip='language,bad_words')

def test_one_task_is_as_in_memory(tmp_path, no_list, capsys):
    "The same pages, the same counts, and `datatrove`'s sorted files find the spans that the set in memory finds"
    d = write_corpus(tmp_path/'raw', corpus())
    r = clean(str(d), str(tmp_path/'out'), tasks=1, workers=1, **no_list)
    kept,mem = clean_texts(read_documents(d), **no_list)
    assert list(read_documents(tmp_path/'out'))==kept and (r.counts,r.read,r.kept)==(mem.counts,mem.read,mem.kept)
    assert r.counts['duplicate_spans']['pages']>3 and r.counts['duplicate_spans']['touched']>r.counts['duplicate_spans']['pages']
    got = capsys.readouterr()
    assert 'duplicate_spans' in got.out and not got.err
    assert not (tmp_path/'out'/'work'/'pages').exists() and cleaning_report(tmp_path/'out').to_dict()==r.to_dict()

def test_many_tasks_and_processes(tmp_path, no_list):
    "As many counts from 5 tasks in 2 processes, whatever goes first; more tasks than files, and some without a page"
    d = write_corpus(tmp_path/'raw', corpus())
    r,mem = clean(str(d), str(tmp_path/'out'), tasks=5, workers=2, **no_list),clean_texts(read_documents(d), **no_list)[1]
    before = lambda x: {k:v for k,v in x.counts.items() if k not in ('duplicate_spans','min_sentences')}
    assert (before(r),r.read)==(before(mem),mem.read) and r.n_kept==len(list(read_documents(tmp_path/'out')))
    for k in ('pages','lines','chars'): assert r.read[k]==r.kept[k]+sum(c[k] for c in r.counts.values())
    again = clean(str(d), str(tmp_path/'again'), tasks=5, workers=1, **no_list)
    assert again.to_dict()==r.to_dict() and list(read_documents(tmp_path/'out'))==list(read_documents(tmp_path/'again'))

def test_wikipedia(tmp_path, data_home, no_list):
    fn = data_home/'wikipedia-en-2015'/'test.txt.xz'
    if not fn.exists(): pytest.skip(f'{fn} is not there')
    docs = list(islice(read_documents(fn), 30))
    with lzma.open(tmp_path/'wiki.txt.xz', 'wt') as f: f.write('\n'.join(docs))
    r = clean(str(tmp_path/'wiki.txt.xz'), str(tmp_path/'out'), tasks=2, workers=1, **no_list)
    assert r.n_read==30 and 25<=r.n_kept<=30 and .8<r.kept['chars']/r.read['chars']<.99
    assert r.counts['terminal_punctuation']['lines']>100

def test_goes_on_where_it_failed(tmp_path, no_list):
    "A damaged file stops it with a sentence; once mended only what was not done is done"
    d = write_corpus(tmp_path/'raw', corpus())
    whole = (d/'2.jsonl.gz').read_bytes()
    (d/'2.jsonl.gz').write_bytes(whole[:-9]) # as when a download stops
    go = lambda: clean(str(d), str(tmp_path/'out'), tasks=3, workers=1, rules=','.join(PAGE_RULES))
    with pytest.raises(ValueError, match=r'2.jsonl.gz cannot be read after page \d+: .* mend the file'): go()
    with pytest.raises(FileNotFoundError, match="2 tasks of 'clean' are done"): cleaning_report(tmp_path/'out')
    assert not (tmp_path/'out'/'00002.jsonl.gz').exists() # nothing half written
    done = {o:o.stat().st_mtime_ns for o in (tmp_path/'out').glob('*.gz')}
    (d/'2.jsonl.gz').write_bytes(whole)
    r = go()
    assert len(done)==2 and all(o.stat().st_mtime_ns==t for o,t in done.items())
    assert r.counts==clean_texts(read_documents(d), PAGE_RULES)[1].counts and go().to_dict()==r.to_dict()

def test_a_reader_of_datatrove(tmp_path, no_list):
    "Whatever datatrove can read, with what it knows of each page"
    from datatrove.pipeline.readers.csv import CsvReader
    (tmp_path/'raw').mkdir()
    pd.DataFrame(dict(text=corpus(), url='here')).to_csv(tmp_path/'raw'/'a.csv', index=False)
    r = clean(CsvReader(str(tmp_path/'raw')), str(tmp_path/'out'), 'citations,curly_bracket,duplicate_spans', tasks=2, workers=1)
    kept = clean_texts(corpus(), 'citations,curly_bracket,duplicate_spans')[0]
    assert list(read_documents(tmp_path/'out'))==kept and r.n_read==60
    assert clean(CsvReader(str(tmp_path/'raw')), str(tmp_path/'out'), 'citations,curly_bracket,duplicate_spans').to_dict()==r.to_dict()
    with gzip.open(tmp_path/'out'/'00000.jsonl.gz', 'rt') as f: assert json.loads(f.readline())['metadata']['url']=='here'

DAMAGE = dict(xz=lzma.compress(b'x'*99)[:-20]+bytes(20), gz=gzip.compress(os.urandom(999))[:500], jsonl=b'{"text": "a"}\n{"text": 3}\n', list=b'["a"]\n', cut=b'{"text": "a', code=b'\xff\xfe')

@pytest.mark.parametrize('kind', DAMAGE)
def test_files_that_cannot_be_read(tmp_path, no_list, kind):
    fn = tmp_path/dict(xz='a.txt.xz', gz='a.jsonl.gz', code='a.txt').get(kind, 'a.jsonl')
    fn.write_bytes(DAMAGE[kind])
    with pytest.raises(ValueError, match=f'{fn.name} cannot be read after page {1 if kind=="jsonl" else 0}'): clean(str(fn), str(tmp_path/'out'), 'policy', workers=1)

def test_pages_without_text_and_words_in_a_rule(tmp_path, no_list, monkeypatch):
    "null is an empty page; paths may be relative; a file of words may stand in the rule"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'a.jsonl').write_text('{"text": null}\n{"text": "Darn."}\n{"text": "Fine."}\n')
    (tmp_path/'bad.txt').write_text('darn\n')
    r = clean('a.jsonl', 'out', 'bad_words=bad.txt', workers=1)
    assert list(read_documents('out'))==['Fine.'] and {k:c['pages'] for k,c in r.counts.items()}==dict(empty=1, bad_words=1)
    (tmp_path/'bad.txt').write_text('fine\n')
    with pytest.raises(ValueError, match='with other bad_words'): clean('a.jsonl', 'out', 'bad_words=bad.txt', workers=1)

def test_bad_input_of_a_corpus(tmp_path, no_list):
    d,out = write_corpus(tmp_path/'raw', corpus(6)),tmp_path/'out'
    (tmp_path/'empty').mkdir()
    (tmp_path/'empty'/'a.txt').write_text('\n\n')
    (tmp_path/'bad.json').write_text('{"partition":"cpu"}')
    other = tmp_path/'other'
    other.mkdir()
    (other/'x.jsonl.gz').write_bytes(b'')
    for kw,m in ((dict(texts=d/'none'), 'is not there'), (dict(texts=tmp_path/'empty'), 'holds no text'), (dict(out=d/'clean'), 'is inside'), (dict(out=d), 'is inside'),
        (dict(texts=d/'1.txt', out=tmp_path), 'is inside'), (dict(rules='min_word'), "did you mean 'min_words'"), (dict(executor='rey'), "did you mean 'ray'"),
        (dict(executor='slurm', options=str(tmp_path/'bad.json')), 'needs the option time'), (dict(options=dict(colour=1)), "no option 'colour'"), (dict(options=str(d/'1.txt')), 'is no JSON file'),
        (dict(bad_words=str(d/'none')), 'is not there'), (dict(out=other), 'of something else'), (dict(field='body'), "no JSON object with a field 'body'"), (dict(out=d/'1.txt'), 'is')):
        kw = dict(texts=d, out=out, workers=1) | no_list | kw
        with pytest.raises((ValueError,FileNotFoundError), match=re.escape(m)): clean(**{k:str(v) if isinstance(v, type(d)) else v for k,v in kw.items()})
    assert not out.exists()
    clean(str(d), str(out), 'policy', workers=1)
    with pytest.raises(ValueError, match='with other rules'): clean(str(d), str(out), 'javascript', workers=1)
    with pytest.raises(ValueError, match='with other tasks'): clean(str(d), str(out), 'policy', tasks=9)
    (d/'1.txt').write_text('More text.')
    with pytest.raises(ValueError, match='with other files'): clean(str(d), str(out), 'policy', workers=1)

def test_command_line(tmp_path, no_list, capsys):
    d = write_corpus(tmp_path/'raw', corpus(9))
    (tmp_path/'bad.txt').write_text('even\n')
    p = anno_parser(clean, prog='ulmfit_t5 clean')
    args = vars(p.parse_args([str(d), str(tmp_path/'out'), '--skip', 'language', '--bad-words', str(tmp_path/'bad.txt'), '--workers', '1']))
    r = clean(**{k:v for k,v in args.items() if k not in ('pdb','xtra')})
    assert r.counts['bad_words']['pages'] and str(r) in capsys.readouterr().out and not any('even' in o for o in read_documents(tmp_path/'out'))

def test_without_the_extras(tmp_path):
    "Lists are cleaned and modules imported where neither datatrove nor langdetect is; what needs them says so"
    (tmp_path/'t.py').write_text(f'''
import sys
for o in ('datatrove','langdetect','ray'): sys.modules[o] = None
from ulmfit_t5.data.cleaning import *
from ulmfit_t5.data.cleaning_pipeline import *
assert clean_texts([{GOOD!r}], skip='language,bad_words')[0]==[{GOOD!r}]
for f,m in ((lambda: clean_texts([]), "needs langdetect: pip install 'ulmfit_t5[clean]'"), (lambda: clean('a', 'b'), "needs datatrove: pip install 'ulmfit_t5[clean]'")):
    try: f()
    except ImportError as e: assert m in str(e), e
    else: assert False
''')
    run(sys.executable, tmp_path/'t.py', cwd=tmp_path)

FAKES = dict(scontrol='echo localhost', srun='shift 3; "$@"', sbatch='''for o; do file=$o; done
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' $file)
for i in $(seq 0 $last); do SLURM_ARRAY_TASK_ID=$i SLURM_NODELIST=localhost bash $file >$file.log 2>&1 || { cat $file.log >&2; exit 1; }; done
echo Submitted batch job 1''')

@pytest.mark.slow
def test_slurm(tmp_path, no_list, monkeypatch, capsys):
    "The jobs that a cluster would be given, run by stand-ins for its commands"
    (tmp_path/'bin').mkdir()
    for k,v in FAKES.items():
        (tmp_path/'bin'/k).write_text(f'#!/bin/bash\n{v}\n')
        (tmp_path/'bin'/k).chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}/bin:{os.path.dirname(sys.executable)}:{os.environ["PATH"]}')
    d = write_corpus(tmp_path/'raw', corpus())
    go = lambda: clean(str(d), str(tmp_path/'out'), tasks=1, executor='slurm', options=dict(partition='cpu', time='1:00:00', mem_per_cpu_gb=3), **no_list)
    go()
    kept,mem = clean_texts(read_documents(d), **no_list)
    assert list(read_documents(tmp_path/'out'))==kept and cleaning_report(tmp_path/'out').counts==mem.counts
    script = (tmp_path/'out'/'work'/'logs'/'clean'/'launch_script.slurm').read_text()
    assert all(f'#SBATCH --{o}\n' in script for o in ('partition=cpu','time=1:00:00','mem-per-cpu=3G','job-name=clean_clean'))

@pytest.mark.slow
def test_ray(tmp_path, no_list, monkeypatch):
    "A cluster of one machine, with all that it writes in a folder of its own"
    ray = pytest.importorskip('ray')
    monkeypatch.setenv('HOME', str(tmp_path))
    d = write_corpus(tmp_path/'raw', corpus())
    with tempfile.TemporaryDirectory() as tmp: # pytest's own names are too long for sockets
        init = dict(num_cpus=2, object_store_memory=100_000_000, _temp_dir=tmp)
        try: r = clean(str(d), str(tmp_path/'out'), tasks=2, workers=2, executor='ray', options=dict(init=init, mem_per_cpu_gb=.2), **no_list)
        finally: ray.shutdown()
    local = clean(str(d), str(tmp_path/'local'), tasks=2, workers=1, **no_list)
    assert r.counts==local.counts and list(read_documents(tmp_path/'out'))==list(read_documents(tmp_path/'local'))
