"The layer board and the replay in JupyterLab under headless Chromium: clicks act, pictures stay. Screenshots: build/browser"
import nbformat,re,pytest,test_browser
from playwright.sync_api import expect
from test_browser import WAIT,Book,wait_for

lab,browser = test_browser.lab,test_browser.browser

@pytest.fixture(scope='module')
def board(lab, browser):
    "A training under way in the second cell, its board in the output of the first"
    b = Book(lab, browser, 'board', ["from small import *\nfrom ulmfit_t5.train.steered import *\nfrom ulmfit_t5.train.events import RunLog\nfrom ulmfit_t5.widgets.board import LayerBoard\n"
        "learn = small('board.jsonl')\nboard = LayerBoard(learn, every_s=.2, share=.1)\nboard",
        "with learn.no_bar(): await learn.steer('fit', 2000, cbs=RunLog('board_run.jsonl'))\nprint('ended')",
        "from ulmfit_t5.widgets.replay import Replay\nReplay('board_run.jsonl')"])
    b.run(0)
    b.button('reset').wait_for(timeout=WAIT)
    b.run(1)
    wait_for(lambda: b.steps()>30, 60, 'the training made no steps')
    return b

def test_a_click_freezes_the_bottom_group(board):
    b = board
    b.button('open', 2).click() # top first: the third switch is the bottom group's
    wait_for(lambda: b.lines()[-1]['rates'][0]==0, 10, 'the rate of the group did not go to zero')
    expect(b.button('frozen')).to_have_count(1, timeout=WAIT)
    expect(b.out(0)).to_contain_text('freeze(group=0): applied before step', timeout=WAIT)
    n = b.steps()
    wait_for(lambda: b.steps()>n+20, 20, 'the training did not go on')
    rows = b.lines()
    first = next(i for i,o in enumerate(rows) if o['rates'][0]==0)
    assert len({o['sums'][0] for o in rows[first-1:]})==1 and len({o['sums'][2] for o in rows})==len(rows)
    b.button('layers', 0).click()
    expect(b.out(0)).to_contain_text('Linear', timeout=WAIT)
    b.shot('board_1_training')

def test_the_keyboard_is_enough(board):
    "Type a rate, Enter; Tab to reset, Space; back to the switch with Shift+Tab, Space"
    b = board
    b.page.locator('.jp-OutputArea input[type=text]').nth(2).focus()
    b.page.keyboard.type('2e-4')
    b.page.keyboard.press('Enter')
    wait_for(lambda: b.steps() and b.out(0).locator('text=set_rate(group=0, lr=0.0002): applied').count(), 20, 'the rate was not set')
    b.page.keyboard.press('Tab')
    b.page.keyboard.press('Space')
    expect(b.out(0)).to_contain_text('reset(group=0): applied before step', timeout=WAIT)
    for _ in range(2): b.page.keyboard.press('Shift+Tab')
    b.page.keyboard.press('Space')
    wait_for(lambda: b.lines()[-1]['rates'][0]==2e-4, 10, 'the group was not opened by the space bar')
    b.page.locator('.jp-OutputArea input[type=text]').nth(0).fill('quick')
    b.page.keyboard.press('Enter')
    expect(b.out(0)).to_contain_text("the rate is 'quick': give a number", timeout=WAIT)

def test_the_picture_takes_its_place_and_stays(board):
    b = board
    b.page.locator('.jp-Notebook .jp-Cell').nth(1).locator('.jp-InputPrompt').click() # out of the field, so that keys are the notebook's
    for _ in 'ii': b.page.keyboard.press('i')
    expect(b.out(0).locator('button.jupyter-button')).to_have_count(0, timeout=WAIT)
    expect(b.out(0)).to_contain_text('Layers of Small, after step', timeout=WAIT)
    assert b.out(0).locator('img').count()>=12
    b.out(0).scroll_into_view_if_needed()
    b.shot('board_2_picture')

def test_replay_plays(board):
    "The slider moves the picture, and plays with no training; its picture is in the saved notebook"
    b = board
    b.run(2)
    expect(b.out(2)).to_contain_text('who trains when', timeout=WAIT)
    handle = b.out(2).locator('.noUi-handle').first
    handle.focus()
    title = lambda: re.search(r'step (\d+) of (\d+)', b.out(2).inner_text())
    at = int(title()[1])
    for _ in range(5): b.page.keyboard.press('ArrowLeft')
    wait_for(lambda: int(title()[1])<at, 20, 'the picture did not follow the slider')
    b.out(2).scroll_into_view_if_needed()
    b.shot('replay_1_slider')
    assert b.out(2).locator('.u5-below').first.is_visible() is False, 'the picture stands twice'
    b.save()
    outs = [''.join(o.get('data', {}).get('text/html', '')) for c in nbformat.read(b.dir/'board.ipynb', 4).cells for o in c.outputs]
    assert any('Layers of Small' in o for o in outs) and any('who trains when' in o for o in outs), 'the pictures are not in the file'
