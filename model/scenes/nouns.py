"""The everyday words that scenes are drawn from, and which of them may not meet in one scene.

Tables are texts: words between commas; in tables of pairs, a colon follows the first word.
"""

from __future__ import annotations


def split_words(text: str) -> tuple[str, ...]:
    """Split a text into words at commas."""
    return tuple(" ".join(word.split()) for word in text.split(","))


def split_pairs(text: str) -> list[tuple[str, str]]:
    """Split a text into pairs at commas, and each at its colon."""
    pairs = []
    for entry in split_words(text):
        first, second = entry.split(": ")
        pairs.append((first, second))
    return pairs


# One word or two. Words that are also colours ("orange") or shapes ("star", "heart") are left out,
# as are people, faces, flags and symbols, and what cannot be told at twenty pixels.
ANIMALS = split_words("""
    ant, bat, bee, beetle, butterfly, camel, cat, chick, cow, crab, crocodile, deer, dinosaur,
    dog, dolphin, dove, dragon, duck, eagle, elephant, fish, flamingo, fox, frog, giraffe, goat,
    gorilla, hedgehog, hippo, horse, kangaroo, koala, ladybug, leopard, lion, lizard, llama,
    lobster, monkey, mosquito, mouse, octopus, otter, owl, panda, parrot, peacock, penguin, pig,
    rabbit, raccoon, rhino, rooster, scorpion, shark, sheep, shrimp, skunk, sloth, snail, snake,
    spider, squid, squirrel, swan, tiger, turkey, turtle, unicorn, whale, wolf, zebra
""")
FOOD = split_words("""
    apple, avocado, bacon, bagel, baguette, banana, beer mug, broccoli, burrito, cake, candy,
    carrot, cheese, cherries, chestnut, chili pepper, chocolate bar, cocktail, coconut, coffee
    cup, cookie, corn, croissant, cucumber, cupcake, donut, dumpling, egg, eggplant, fries,
    garlic, grapes, hamburger, honey pot, hot dog, ice cream, kiwi, lemon, lollipop, mango,
    melon, milk, mushroom, onion, peach, pear, pie, pineapple, pizza, popcorn, potato, pretzel,
    pumpkin, salad, sandwich, steak, strawberry, sushi, taco, tangerine, tomato, waffle,
    watermelon, wine glass
""")
VEHICLES = split_words("""
    airplane, ambulance, bicycle, bus, car, fire truck, helicopter, motorcycle, parachute,
    police car, racing car, rocket, sailboat, scooter, ship, skateboard, sled, taxi, tractor,
    train, truck, wheelchair
""")
OUTDOORS = split_words("""
    cactus, castle, christmas tree, church, cloud, feather, ferris wheel, fire, flower,
    fountain, globe, hospital, house, leaf, moon, palm tree, pine tree, plant, rainbow, rose,
    snowflake, snowman, sun, sunflower, tent, traffic light, tree, tulip, volcano
""")
TOOLS = split_words("""
    anchor, axe, battery, broom, bucket, candle, dagger, fire extinguisher, flashlight, hammer,
    key, knife, ladder, light bulb, magnet, magnifying glass, microscope, padlock, paintbrush,
    paperclip, pen, pencil, plug, pushpin, ruler, saw, scissors, screwdriver, shield, spoon,
    syringe, telescope, thermometer, toothbrush, wrench
""")
HOUSEHOLD = split_words("""
    alarm clock, baby bottle, backpack, basket, bathtub, bed, bell, bone, book, box, briefcase,
    camera, chair, coin, computer, credit card, door, envelope, gift, handbag, hourglass,
    laptop, mirror, money bag, newspaper, notebook, phone, pill, radio, razor, satellite,
    scroll, shopping cart, soap, sponge, suitcase, teapot, teddy bear, telephone, television,
    toilet, tooth, umbrella, watch, window
""")
CLOTHES = split_words("""
    boot, cap, coat, crown, dress, gem, glasses, gloves, hat, jeans, lipstick, ring, sandal,
    scarf, shirt, shoe, shorts, socks, sunglasses
""")
PLAY = split_words("""
    accordion, balloon, banjo, baseball, basketball, boxing glove, dice, drum, football, ghost,
    guitar, headphones, kite, medal, microphone, piano, puzzle piece, robot, saxophone, ice
    skate, soccer ball, tennis racket, trophy, trumpet, violin, volleyball, yarn
""")
NOUNS = tuple(sorted({*ANIMALS, *FOOD, *VEHICLES, *OUTDOORS, *TOOLS, *HOUSEHOLD, *CLOTHES, *PLAY}))

PLURALS = {
    *split_words("""
    cherries, fries, glasses, gloves, grapes, headphones, jeans, scissors, shorts, socks,
    sunglasses
""")
}

# Names in the icon sets where they are not the noun with hyphens. A set without the icon leaves
# that noun out.
ICONS = dict(
    split_pairs("""
    airplane: small-airplane, apple: red-apple, baguette: baguette-bread, bee: honeybee, book:
    closed-book, boot: womans-boot, box: package, cake: birthday-cake, camel: two-hump-camel,
    cap: billed-cap, car: automobile, cheese: cheese-wedge, chick: front-facing-baby-chick,
    chili pepper: hot-pepper, cocktail: cocktail-glass, coffee cup: hot-beverage, computer:
    desktop-computer, corn: ear-of-corn, dice: game-die, dinosaur: sauropod, donut: doughnut,
    fire truck: fire-engine, flower: blossom, football: american-football, fries: french-fries,
    gem: gem-stone, gift: wrapped-gift, globe: globe-showing-europe-africa, hat: top-hat,
    headphones: headphone, hippo: hippopotamus, hourglass: hourglass-done, ice cream:
    soft-ice-cream, kiwi: kiwi-fruit, knife: kitchen-knife, ladybug: lady-beetle, leaf:
    maple-leaf, magnifying glass: magnifying-glass-tilted-left, medal: sports-medal, milk:
    glass-of-milk, moon: crescent-moon, padlock: locked, phone: mobile-phone, piano:
    musical-keyboard, pine tree: evergreen-tree, plant: potted-plant, plug: electric-plug,
    pumpkin: jack-o-lantern, rhino: rhinoceros, ruler: straight-ruler, salad: green-salad,
    sandal: womans-sandal, saw: carpentry-saw, scooter: motor-scooter, sheep: ewe, shirt:
    t-shirt, shoe: mans-shoe, snowman: snowman-without-snow, squirrel: chipmunk, steak:
    cut-of-meat, suitcase: luggage, tennis racket: tennis, traffic light:
    vertical-traffic-light, tree: deciduous-tree, truck: delivery-truck, whale: spouting-whale,
    wheelchair: manual-wheelchair
""")
)
# Icons that show something else than the noun, or something else beside it: noun and style.
UNFIT = {
    *split_pairs("""
    basketball: noto-v1, laptop: noto-v1, ship: twemoji, tennis racket: twemoji, train: noto-v1
""")
}

# Words of which a person might use either for one thing, or take one for the other at twenty
# pixels. Such words never meet in one scene, and no expression names one where the other is; plain
# shapes are among them.
ALIKE = {
    frozenset(pair)
    for pair in split_pairs("""
    alarm clock: watch, ant: beetle, backpack: suitcase, backpack: handbag, bagel: donut,
    balloon: lollipop, baseball: volleyball, beetle: ladybug, book: notebook, box: gift,
    burrito: taco, bus: train, bus: truck, cake: cupcake, camel: llama, candle: fire, car: taxi,
    car: police car, car: racing car, cat: lion, cat: tiger, cat: leopard, chick: duck, circle:
    baseball, circle: basketball, circle: coin, circle: cookie, circle: donut, circle: globe,
    circle: soccer ball, circle: tangerine, circle: volleyball, circle: watch, circle: yarn,
    coconut: chestnut, computer: laptop, computer: television, cross: ambulance, cross:
    hospital, dagger: knife, deer: goat, diamond: gem, diamond: kite, dinosaur: crocodile,
    dinosaur: dragon, dog: fox, dog: wolf, dolphin: shark, dolphin: whale, dove: swan, dove:
    duck, dove: rooster, dragon: crocodile, duck: swan, eagle: dove, eagle: parrot, eagle: owl,
    eagle: turkey, ellipse: egg, ellipse: football, ellipse: potato, fire: volcano, fire truck:
    ambulance, fish: dolphin, fish: shark, fish: whale, flower: rose, flower: sunflower, flower:
    tulip, glasses: sunglasses, guitar: banjo, guitar: violin, handbag: briefcase, hat: cap,
    heart: strawberry, horse: unicorn, horse: zebra, hot dog: burrito, house: church, house:
    castle, house: hospital, house: tent, jeans: shorts, ladybug: bee, laptop: television,
    lemon: mango, lemon: pear, lion: tiger, lion: leopard, lizard: crocodile, lizard: dinosaur,
    lobster: crab, magnifying glass: mirror, melon: watermelon, milk: baby bottle, monkey:
    gorilla, motorcycle: scooter, motorcycle: bicycle, mouse: squirrel, mouse: hedgehog,
    mushroom: umbrella, octopus: squid, onion: garlic, peach: tangerine, peach: mango, peach:
    apple, pen: pencil, pen: paintbrush, phone: telephone, pie: cake, pine tree: christmas tree,
    plant: palm tree, plant: flower, plant: tree, plant: cactus, pumpkin: tangerine, rabbit:
    mouse, raccoon: skunk, salad: broccoli, sandwich: hamburger, screwdriver: paintbrush,
    screwdriver: toothbrush, sheep: goat, sheep: llama, shield: gem, ship: sailboat, shirt:
    coat, shirt: dress, shoe: boot, shoe: sandal, shoe: ice skate, shrimp: lobster, shrimp:
    crab, snake: lizard, sponge: cheese, sponge: soap, spoon: knife, square: box, square:
    window, square: dice, squirrel: otter, squirrel: raccoon, squirrel: fox, star: snowflake,
    star: sun, suitcase: briefcase, sun: sunflower, taxi: police car, teddy bear: koala, teddy
    bear: panda, tiger: leopard, tomato: apple, train: truck, tree: broccoli, tree: christmas
    tree, tree: palm tree, tree: pine tree, triangle: tent, triangle: pizza, truck: ambulance,
    truck: fire truck, truck: tractor, trumpet: saxophone, turkey: peacock, turkey: rooster,
    violin: banjo, whale: shark, window: door, window: mirror, wine glass: cocktail, wolf: fox
""")
}


def alike(name: str, other: str) -> bool:
    """Whether one thing could be called by both words."""
    return frozenset((name, other)) in ALIKE


def icon_name(noun: str) -> str:
    """Return the name of a noun in the icon sets."""
    return ICONS.get(noun, noun.replace(" ", "-"))
