"Lessons in JupyterLab under headless Chromium, all cells run by the menu: their panels obey, and their pictures stay. Screenshots: build/browser"
import re,nbformat,pytest,test_browser
from playwright.sync_api import expect
from conftest import root
from test_browser import WAIT,Book,pictures,wait_for

lab,browser = test_browser.lab,test_browser.browser

class Lesson(Book):
    "A tutorial without its outputs; `more` has cells of ours, each after the cell with a text in its source"
    def __init__(self, lab, browser, name, more):
        nb = nbformat.read(root/'nbs'/'tutorials'/f'{name}.ipynb', 4)
        for c in nb.cells:
            if c.cell_type=='code': c.outputs,c.execution_count = [],None
        for text,src in more.items():
            i = next(i for i,c in enumerate(nb.cells) if text in c.source)
            nb.cells.insert(i+1, nbformat.v4.new_code_cell(src))
        super().__init__(lab, browser, name, nb)
        self.sources = [c.source for c in nb.cells]
    def at(self, text): return next(i for i,s in enumerate(self.sources) if text in s)
    def after(self, text): # output of the cell with this text
        return self.out(self.at(text))
    def show(self, text, shot):
        self.page.locator('.jp-Notebook .jp-Cell').nth(self.at(text)).evaluate('o => o.scrollIntoView({block:"start"})')
        self.page.wait_for_timeout(300)
        self.shot(shot)

@pytest.fixture(scope='module')
def steering(lab, browser):
    "Lesson 11 under way; its first training waits before its third step, however fast the machine is"
    b = Lesson(lab, browser, '11_steering_a_run', {'panel = learn.cockpit()':"steering(learn).send('pause', at=2)"})
    b.run_all()
    return b

def test_all_cells_run_and_the_panel_obeys(steering):
    b = steering
    panel = b.after('panel = learn.cockpit()')
    expect(panel).to_contain_text('paused', timeout=WAIT)
    b.show('panel = learn.cockpit()', 'lesson11_1_paused')
    b.button('Freeze', 0).click()
    expect(panel).to_contain_text(re.compile('4 head: □ frozen, rate 0 .yours.'), timeout=WAIT)
    b.button('One step').click()
    expect(panel).to_contain_text(re.compile('step: applied before step 2|step 3'), timeout=WAIT)
    b.show('panel = learn.cockpit()', 'lesson11_2_frozen')
    b.button('Resume').click()
    expect(b.after('o in steer.log])')).to_contain_text('freeze', timeout=WAIT)
    rows = b.after('o in steer.log])').inner_text()
    assert re.search(r'freeze\s+4', rows) and re.search(r'set_rate\s+4', rows), 'a click and a command of the lesson are in one log'
    expect(b.after('assert same')).to_contain_text('the same bits', timeout=WAIT)
    expect(panel.locator('button.jupyter-button')).to_have_count(0, timeout=WAIT)
    expect(panel).to_contain_text('Commands: step 2: pause; step 2: freeze 4')
    b.show('panel = learn.cockpit()', 'lesson11_3_picture')

def test_a_key_on_a_slider_of_the_bench(steering):
    b = steering
    bench = b.after('bench = ScheduleBench')
    b.show('bench = ScheduleBench', 'lesson11_4_bench')
    old,n = pictures(bench),bench.inner_text()
    assert 'factor=2.6' in n and old
    bench.locator('.u5-bench-factor .noUi-handle').focus()
    for _ in range(6): b.page.keyboard.press('ArrowRight')
    wait_for(lambda: re.search(r'factor=(?!2\.6\D)', bench.inner_text()), 20, 'the code did not change')
    wait_for(lambda: pictures(bench)!=old, 20, 'the picture did not change')
    b.show('bench = ScheduleBench', 'lesson11_5_bench_moved')

def test_the_pictures_outlive_the_kernel(steering):
    "Saved and restarted, and then opened again with no kernel at all"
    b = steering
    b.save()
    b.page.locator('.lm-MenuBar-item:has-text("Kernel")').click()
    b.page.locator('.lm-Menu-item[data-command="kernelmenu:restart"]').click()
    b.page.wait_for_timeout(1000)
    b.page.wait_for_selector('.jp-Notebook-ExecutionIndicator[data-status="idle"]', timeout=WAIT)
    stay(b, STEERING)
    b.end_kernels()
    b.open()
    stay(b, STEERING)
    b.show('bench = ScheduleBench', 'lesson11_6_bench_reopened')
    b.show('panel = learn.cockpit()', 'lesson11_7_reopened')

STEERING = {'panel = learn.cockpit()':'Training cockpit', 'bench = ScheduleBench':'factor='}
TRANSFER = {'board2.open(4)':'Layers of TextClassifier', 'both = Replay':'gradual less full', 'ours = board2':'Layers of TextClassifier'} # the last one is live when it is saved

def stay(b, panels):
    "Pictures stand below cells, with nothing said of widgets that are gone; `panels` has a text of each picture"
    for src,title in panels.items():
        expect(b.after(src)).to_contain_text(title, timeout=WAIT)
        img = b.after(src).locator('img:visible, svg:visible').first
        img.scroll_into_view_if_needed()
        assert img.evaluate('o => o.tagName!="IMG" || o.complete && o.naturalWidth>0'), f'the picture below {src} cannot be shown'
    expect(b.page.locator('.jp-Notebook .jupyter-widgets', has_text='not found').locator('visible=true')).to_have_count(0)

def test_lesson_10_watches_replays_and_stays(lab, browser):
    "Its replay follows the keys and its board a click, after all cells have run; its pictures need no kernel"
    b = Lesson(lab, browser, '10_watching_transfer_happen', {'page = both.export':'ours = board2\nours'})
    b.run_all()
    board,both = b.after('ours = board2'),b.after('both = Replay')
    board.locator('button:has-text("open")').first.click() # top first: the head
    expect(board).to_contain_text('freeze(group=4): applied before step', timeout=WAIT)
    expect(board.locator('button:has-text("frozen")').first).to_be_visible(timeout=WAIT)
    b.show('ours = board2', 'lesson10_1_board')
    step = lambda: int(re.search(r'step (\d+) of', both.inner_text())[1])
    both.locator('.noUi-handle').first.focus()
    at,old = step(),pictures(both)
    for _ in range(2): b.page.keyboard.press('ArrowLeft')
    wait_for(lambda: step()<at and pictures(both)!=old, 20, 'the replay did not follow the keys')
    b.show('both = Replay', 'lesson10_2_replay')
    b.save()
    b.end_kernels()
    b.open()
    stay(b, TRANSFER)
    b.show('both = Replay', 'lesson10_3_reopened')
    b.show('board2.open(4)', 'lesson10_4_board_reopened')

def test_lesson_12_trains_in_two_processes_and_stays(lab, browser):
    "The panel has a row for each process while they train; what it shows at the end, and the traceback of a process that failed, need no kernel"
    b = Lesson(lab, browser, '12_two_processes_on_a_laptop', {})
    b.run_all()
    panel,failed = b.after('learn.fit_distributed(plan'),b.after('build=broken')
    expect(panel.locator('tr:visible', has_text='CPU')).to_have_count(2, timeout=WAIT)
    b.show('learn.fit_distributed(plan', 'lesson12_1_training')
    expect(failed).to_contain_text('ValueError: Exception occured in `Trip`', timeout=WAIT)
    expect(b.after('r = learn.distributed')).to_contain_text('balance', timeout=WAIT)
    expect(b.after('gap = max(')).to_contain_text('largest difference', timeout=WAIT)
    b.save()
    b.end_kernels()
    b.open()
    stay(b, {'learn.fit_distributed(plan':'process'})
    expect(failed).to_contain_text('the second process has had enough')
    b.show('learn.fit_distributed(plan', 'lesson12_2_reopened')

def test_lesson_13_opens_texts_and_shows_where_it_looks(lab, browser):
    "A click on a number of the confusion matrix opens its texts, another layer and another token change what is looked at"
    b = Lesson(lab, browser, '13_what_did_the_model_read', {})
    b.run_all()
    cells = b.after('it.show_confusion')
    expect(cells.locator('label').first).to_be_visible(timeout=WAIT)
    shown = lambda: cells.locator('.u5-list:visible').inner_text()
    was = shown()
    other = next(o for o in cells.locator('input[type=radio]').all() if not o.is_checked())
    cells.locator(f'label[for="{other.get_attribute("id")}"]').click()
    wait_for(lambda: shown()!=was, 20, 'the texts of the chosen cell did not come')
    expect(cells.locator('.u5-list:visible')).to_have_count(1)
    b.show('it.show_confusion', 'lesson13_1_confusion')
    view = b.after('view = attention_view')
    expect(view.locator('.u5-say')).to_contain_text('looks at', timeout=WAIT)
    said = lambda: view.locator('.u5-say').inner_text()
    was = said()
    view.locator('.u5-read span').last.click()
    wait_for(lambda: said()!=was, 20, 'the view did not follow the token')
    was = said()
    view.locator('.u5-head').select_option('1')
    wait_for(lambda: said()!=was, 20, 'the view did not follow the head')
    b.show('view = attention_view', 'lesson13_2_attention')
