"""General questions, whose answers by the model itself become training rows.

So it keeps what it knew. Others are held out.
"""

_CAPITALS = """
Argentina Australia Austria Bangladesh Belgium Bolivia Brazil Bulgaria Cambodia Canada Chile China
Colombia Croatia Cuba Cyprus Denmark Ecuador Egypt Estonia Ethiopia Finland Georgia Germany Ghana
Greece Hungary Iceland India Indonesia Iran Iraq Ireland Israel Jamaica Japan Jordan Kenya Latvia
Lebanon Lithuania Malaysia Mexico Mongolia Morocco Nepal Netherlands Nigeria Norway Pakistan Peru
Philippines Poland Romania Russia Serbia Singapore Slovakia Slovenia Somalia Sudan Sweden
Switzerland Syria Thailand Tunisia Turkey Uganda Ukraine Uruguay Venezuela Vietnam Zambia Zimbabwe
"""
_HELD_OUT_CAPITALS = "France Italy Spain Armenia Kazakhstan Qatar"
_WORDS = """
cat water house book tree bread school friend mother river morning garden window apple bird
"""
_HELD_OUT_WORDS = "dog sun"
_FACTS = """
How many days are in a week?
How many months are in a year?
How many legs does a spider have?
Who wrote Romeo and Juliet?
What is the largest planet in our solar system?
What is the smallest continent?
What is the chemical symbol for gold?
What is the chemical symbol for iron?
What is the chemical symbol for silver?
What gas do plants breathe in?
Which planet is known as the Red Planet?
What is the largest mammal?
What is the tallest animal?
What do bees make?
Which language is spoken in Brazil?
What is the freezing point of water in degrees Celsius?
How many continents are there?
What is the currency of Japan?
What is the currency of the United States?
"""
_HELD_OUT_FACTS = """
What is the largest ocean on Earth?
What is the chemical symbol for water?
"""


def general_questions(split: str) -> list[str]:
    """Questions to be asked before training (``train``), or held out from it (``test``)."""
    is_test = split == "test"
    countries = (_HELD_OUT_CAPITALS if is_test else _CAPITALS).split()
    words = (_HELD_OUT_WORDS if is_test else _WORDS).split()
    facts = (_HELD_OUT_FACTS if is_test else _FACTS).strip().splitlines()
    return [
        *(f"What is the capital of {country}?" for country in countries),
        *(f"Write one short sentence about the word {word}." for word in words),
        *facts,
    ]
