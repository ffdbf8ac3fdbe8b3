"""From 13 audio features of a song to the countries where it charts."""

from pipeline.core.contract import Model
from pipeline.core.kinds import Check, Counts, top
from pipeline.models.jukebox.charts import views
from pipeline.models.jukebox.examples import TARGET, examples
from pipeline.models.jukebox.network import JukeboxHyperparameters, network
from pipeline.models.jukebox.rules import RULES
from pipeline.models.jukebox.tables import RANKINGS, SONGS

MODEL = Model(
    name="jukebox",
    title="From 13 audio features of a song to the countries where it charts",
    tables=[SONGS, RANKINGS],
    kind=Counts(TARGET),
    views=views,
    rules=RULES,
    examples=examples,
    network=network,
    hyperparameters=JukeboxHyperparameters(),
    metrics=[top(5)],
    tests={"unseen": "songs never met in training", "seen": "later days of songs that it knows"},
    limits=[
        "It hears no artist, language, label, playlist or campaign, which decide more about a chart than sound does. "
        "It says nothing about whether a song will chart at all.",
        "A song often charts in several countries at once, and the first guess can name one of them only. So even a "
        "perfect model would not reach 100%, and the five likeliest countries tell more than the first.",
        "Taste drifts.",
        "Not for decisions about people, pay or rights, and no measure of a song’s worth.",
    ],
    checks=[
        Check(
            "gain-over-baseline",
            "cross_entropy",
            at_least=0.02,
            against="baseline",
            split="unseen",
            description="nats of cross entropy below the country frequencies, on songs never seen",
        ),
        Check("top5-floor", "top5", at_least=0.1, description="share of test rows, top-5"),
    ],
)
