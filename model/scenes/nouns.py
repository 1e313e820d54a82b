"""The everyday words that scenes are drawn from, what each artwork calls them, and which may not
meet in one scene.
"""

from __future__ import annotations

# One word or two. Words that are also colours ("orange") or shapes ("star", "heart") are left out,
# as are people, faces, flags and symbols, and what cannot be told at twenty pixels.
ANIMALS = (
    "ant", "bat", "bee", "beetle", "butterfly", "camel", "cat", "chick", "cow", "crab", "crocodile",
    "deer", "dinosaur", "dog", "dolphin", "dove", "dragon", "duck", "eagle", "elephant", "fish",
    "flamingo", "fox", "frog", "giraffe", "goat", "gorilla", "hedgehog", "hippo", "horse",
    "kangaroo", "koala", "ladybug", "leopard", "lion", "lizard", "llama", "lobster", "monkey",
    "mosquito", "mouse", "octopus", "otter", "owl", "panda", "parrot", "peacock", "penguin", "pig",
    "rabbit", "raccoon", "rhino", "rooster", "scorpion", "shark", "sheep", "shrimp", "skunk",
    "sloth", "snail", "snake", "spider", "squid", "squirrel", "swan", "tiger", "turkey", "turtle",
    "unicorn", "whale", "wolf", "zebra",
)  # fmt: skip
FOOD = (
    "apple", "avocado", "bacon", "bagel", "baguette", "banana", "beer mug", "broccoli", "burrito",
    "cake", "candy", "carrot", "cheese", "cherries", "chestnut", "chili pepper", "chocolate bar",
    "cocktail", "coconut", "coffee cup", "cookie", "corn", "croissant", "cucumber", "cupcake",
    "donut", "dumpling", "egg", "eggplant", "fries", "garlic", "grapes", "hamburger", "honey pot",
    "hot dog", "ice cream", "kiwi", "lemon", "lollipop", "mango", "melon", "milk", "mushroom",
    "onion", "peach", "pear", "pie", "pineapple", "pizza", "popcorn", "potato", "pretzel",
    "pumpkin", "salad", "sandwich", "steak", "strawberry", "sushi", "taco", "tangerine", "tomato",
    "waffle", "watermelon", "wine glass",
)  # fmt: skip
VEHICLES = (
    "airplane", "ambulance", "bicycle", "bus", "car", "fire truck", "helicopter", "motorcycle",
    "parachute", "police car", "racing car", "rocket", "sailboat", "scooter", "ship", "skateboard",
    "sled", "taxi", "tractor", "train", "truck", "wheelchair",
)  # fmt: skip
PLACES = (
    "cactus", "castle", "christmas tree", "church", "cloud", "feather", "ferris wheel", "fire",
    "flower", "fountain", "globe", "hospital", "house", "leaf", "moon", "palm tree", "pine tree",
    "plant", "rainbow", "rose", "snowflake", "snowman", "sun", "sunflower", "tent", "traffic light",
    "tree", "tulip", "volcano",
)  # fmt: skip
TOOLS = (
    "anchor", "axe", "battery", "broom", "bucket", "candle", "dagger", "fire extinguisher",
    "flashlight", "hammer", "key", "knife", "ladder", "light bulb", "magnet", "magnifying glass",
    "microscope", "padlock", "paintbrush", "paperclip", "pen", "pencil", "plug", "pushpin", "ruler",
    "saw", "scissors", "screwdriver", "shield", "spoon", "syringe", "telescope", "thermometer",
    "toothbrush", "wrench",
)  # fmt: skip
HOUSEHOLD = (
    "alarm clock", "baby bottle", "backpack", "basket", "bathtub", "bed", "bell", "bone", "book",
    "box", "briefcase", "camera", "chair", "coin", "computer", "credit card", "door", "envelope",
    "gift", "handbag", "hourglass", "laptop", "mirror", "money bag", "newspaper", "notebook",
    "phone", "pill", "radio", "razor", "satellite", "scroll", "shopping cart", "soap", "sponge",
    "suitcase", "teapot", "teddy bear", "telephone", "television", "toilet", "tooth", "umbrella",
    "watch", "window",
)  # fmt: skip
CLOTHES = (
    "boot", "cap", "coat", "crown", "dress", "gem", "glasses", "gloves", "hat", "jeans", "lipstick",
    "ring", "sandal", "scarf", "shirt", "shoe", "shorts", "socks", "sunglasses",
)  # fmt: skip
PLAY = (
    "accordion", "balloon", "banjo", "baseball", "basketball", "boxing glove", "dice", "drum",
    "football", "ghost", "guitar", "headphones", "kite", "medal", "microphone", "piano",
    "puzzle piece", "robot", "saxophone", "ice skate", "soccer ball", "tennis racket", "trophy",
    "trumpet", "violin", "volleyball", "yarn",
)  # fmt: skip
NOUNS = tuple(sorted({*ANIMALS, *FOOD, *VEHICLES, *PLACES, *TOOLS, *HOUSEHOLD, *CLOTHES, *PLAY}))

PLURALS = {
    "cherries",
    "fries",
    "glasses",
    "gloves",
    "grapes",
    "headphones",
    "jeans",
    "scissors",
    "shorts",
    "socks",
    "sunglasses",
}

# Names in the icon sets where they are not the noun with hyphens. A set without the icon leaves
# that noun out.
ICONS = {
    "airplane": "small-airplane", "apple": "red-apple", "baguette": "baguette-bread",
    "bee": "honeybee", "book": "closed-book", "boot": "womans-boot", "box": "package",
    "cake": "birthday-cake", "camel": "two-hump-camel", "cap": "billed-cap", "car": "automobile",
    "cheese": "cheese-wedge", "chick": "front-facing-baby-chick", "chili pepper": "hot-pepper",
    "cocktail": "cocktail-glass", "coffee cup": "hot-beverage", "computer": "desktop-computer",
    "corn": "ear-of-corn", "dice": "game-die", "dinosaur": "sauropod", "donut": "doughnut",
    "fire truck": "fire-engine", "flower": "blossom", "football": "american-football",
    "fries": "french-fries", "gem": "gem-stone", "gift": "wrapped-gift",
    "globe": "globe-showing-europe-africa", "hat": "top-hat", "headphones": "headphone",
    "hippo": "hippopotamus", "hourglass": "hourglass-done", "ice cream": "soft-ice-cream",
    "kiwi": "kiwi-fruit", "knife": "kitchen-knife", "ladybug": "lady-beetle", "leaf": "maple-leaf",
    "magnifying glass": "magnifying-glass-tilted-left", "medal": "sports-medal",
    "milk": "glass-of-milk", "moon": "crescent-moon", "padlock": "locked", "phone": "mobile-phone",
    "piano": "musical-keyboard", "pine tree": "evergreen-tree", "plant": "potted-plant",
    "plug": "electric-plug", "pumpkin": "jack-o-lantern", "rhino": "rhinoceros",
    "ruler": "straight-ruler", "salad": "green-salad", "sandal": "womans-sandal",
    "saw": "carpentry-saw", "scooter": "motor-scooter", "sheep": "ewe", "shirt": "t-shirt",
    "shoe": "mans-shoe", "snowman": "snowman-without-snow", "squirrel": "chipmunk",
    "steak": "cut-of-meat", "suitcase": "luggage", "tennis racket": "tennis",
    "traffic light": "vertical-traffic-light", "tree": "deciduous-tree", "truck": "delivery-truck",
    "whale": "spouting-whale", "wheelchair": "manual-wheelchair",
}  # fmt: skip
# Icons that show something else than the noun, or something else beside it.
UNFIT = {
    ("laptop", "noto-v1"),
    ("basketball", "noto-v1"),
    ("train", "noto-v1"),
    ("tennis racket", "twemoji"),
    ("ship", "twemoji"),
}

# What a person might call by the first word, or take it for at twenty pixels. Such words never meet
# in one scene, and none is asked for where the other is; plain shapes are among them.
_LIKE = {
    "alarm clock": ("watch",), "ant": ("beetle",), "backpack": ("suitcase", "handbag"),
    "bagel": ("donut",), "balloon": ("lollipop",), "baseball": ("volleyball",),
    "beetle": ("ladybug",), "book": ("notebook",), "box": ("gift",), "burrito": ("taco",),
    "bus": ("train", "truck"), "cake": ("cupcake",), "camel": ("llama",), "candle": ("fire",),
    "car": ("taxi", "police car", "racing car"), "cat": ("lion", "tiger", "leopard"),
    "chick": ("duck",), "circle": ("baseball", "basketball", "coin", "cookie", "donut", "globe",
    "soccer ball", "tangerine", "volleyball", "watch", "yarn"), "coconut": ("chestnut",),
    "computer": ("laptop", "television"), "cross": ("ambulance", "hospital"), "dagger": ("knife",),
    "deer": ("goat",), "diamond": ("gem", "kite"), "dinosaur": ("crocodile", "dragon"),
    "dog": ("fox", "wolf"), "dolphin": ("shark", "whale"), "dove": ("swan", "duck", "rooster"),
    "dragon": ("crocodile",), "duck": ("swan",), "eagle": ("dove", "parrot", "owl", "turkey"),
    "ellipse": ("egg", "football", "potato"), "fire": ("volcano",), "fire truck": ("ambulance",),
    "fish": ("dolphin", "shark", "whale"), "flower": ("rose", "sunflower", "tulip"),
    "glasses": ("sunglasses",), "guitar": ("banjo", "violin"), "handbag": ("briefcase",),
    "hat": ("cap",), "heart": ("strawberry",), "horse": ("unicorn", "zebra"),
    "hot dog": ("burrito",), "house": ("church", "castle", "hospital", "tent"),
    "jeans": ("shorts",), "ladybug": ("bee",), "laptop": ("television",), "lemon": ("mango",
    "pear"), "lion": ("tiger", "leopard"), "lizard": ("crocodile", "dinosaur"),
    "lobster": ("crab",), "magnifying glass": ("mirror",), "melon": ("watermelon",),
    "milk": ("baby bottle",), "monkey": ("gorilla",), "motorcycle": ("scooter", "bicycle"),
    "mouse": ("squirrel", "hedgehog"), "mushroom": ("umbrella",), "octopus": ("squid",),
    "onion": ("garlic",), "peach": ("tangerine", "mango", "apple"), "pen": ("pencil", "paintbrush"),
    "phone": ("telephone",), "pie": ("cake",), "pine tree": ("christmas tree",),
    "plant": ("palm tree", "flower", "tree", "cactus"), "pumpkin": ("tangerine",),
    "rabbit": ("mouse",), "raccoon": ("skunk",), "salad": ("broccoli",), "sandwich": ("hamburger",),
    "screwdriver": ("paintbrush", "toothbrush"), "sheep": ("goat", "llama"), "shield": ("gem",),
    "ship": ("sailboat",), "shirt": ("coat", "dress"), "shoe": ("boot", "sandal", "ice skate"),
    "shrimp": ("lobster", "crab"), "snake": ("lizard",), "sponge": ("cheese", "soap"),
    "spoon": ("knife",), "square": ("box", "window", "dice"), "squirrel": ("otter", "raccoon",
    "fox"), "star": ("snowflake", "sun"), "suitcase": ("briefcase",), "sun": ("sunflower",),
    "taxi": ("police car",), "teddy bear": ("koala", "panda"), "tiger": ("leopard",),
    "tomato": ("apple",), "train": ("truck",), "tree": ("broccoli", "christmas tree", "palm tree",
    "pine tree"), "triangle": ("tent", "pizza"), "truck": ("ambulance", "fire truck", "tractor"),
    "trumpet": ("saxophone",), "turkey": ("peacock", "rooster"), "violin": ("banjo",),
    "whale": ("shark",), "window": ("door", "mirror"), "wine glass": ("cocktail",),
    "wolf": ("fox",),
}  # fmt: skip
ALIKE = frozenset(frozenset((name, other)) for name, others in _LIKE.items() for other in others)


def alike(name: str, other: str) -> bool:
    """Whether one thing could be called by both words, so that neither is beyond doubt where the
    other is.
    """
    return frozenset((name, other)) in ALIKE


def icon_name(noun: str) -> str:
    """What the icon sets call a noun."""
    return ICONS.get(noun, noun.replace(" ", "-"))
