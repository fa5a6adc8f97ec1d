"""Forty foods and six nutrients: rounded figures of USDA FoodData Central, per 100 g of the food as it is eaten.

Legumes, rice, quinoa, pasta and meats are cooked, figs and prunes dried, oats dry; tofu is set with calcium.
"""

from __future__ import annotations

UNITS = {"fiber": "g", "protein": "g", "iron": "mg", "calcium": "mg", "potassium": "mg", "sugar": "g"}
HIGH = {
    "fiber": 5,
    "protein": 10,
    "iron": 2,
    "calcium": 90,
    "potassium": 300,
    "sugar": 5,
}  # a food with at least this is high, else low
NUTRIENTS = tuple(UNITS)

GROUPS: dict[str, dict[str, tuple[float, ...]]] = {  # figures in the order of NUTRIENTS
    "fruits": {
        "apples": (2.4, 0.3, 0.1, 6, 107, 10.4),
        "bananas": (2.6, 1.1, 0.3, 5, 358, 12.2),
        "oranges": (2.4, 0.9, 0.1, 40, 181, 9.4),
        "pears": (3.1, 0.4, 0.2, 9, 116, 9.8),
        "raspberries": (6.5, 1.2, 0.7, 25, 151, 4.4),
        "grapes": (0.9, 0.7, 0.4, 10, 191, 15.5),
        "prunes": (7.1, 2.2, 0.9, 43, 732, 38.1),
        "figs": (9.8, 3.3, 2.0, 162, 680, 47.9),
        "avocados": (6.7, 2.0, 0.6, 12, 485, 0.7),
    },
    "vegetables": {
        "broccoli": (2.6, 2.8, 0.7, 47, 316, 1.7),
        "spinach": (2.2, 2.9, 2.7, 99, 558, 0.4),
        "kale": (4.1, 2.9, 1.6, 254, 348, 0.8),
        "carrots": (2.8, 0.9, 0.3, 33, 320, 4.7),
        "tomatoes": (1.2, 0.9, 0.3, 10, 237, 2.6),
        "potatoes": (2.1, 2.1, 0.8, 12, 425, 0.8),
        "peas": (5.7, 5.4, 1.5, 25, 244, 5.7),
        "mushrooms": (1.0, 3.1, 0.5, 3, 318, 2.0),
        "cabbage": (2.5, 1.3, 0.5, 40, 170, 3.2),
    },
    "nuts": {
        "almonds": (12.5, 21.2, 3.7, 269, 733, 4.4),
        "walnuts": (6.7, 15.2, 2.9, 98, 441, 2.6),
        "peanuts": (8.5, 25.8, 4.6, 92, 705, 4.7),
        "cashews": (3.3, 18.2, 6.7, 37, 660, 5.9),
        "pistachios": (10.6, 20.2, 3.9, 105, 1025, 7.7),
    },
    "legumes": {
        "lentils": (7.9, 9.0, 3.3, 19, 369, 1.8),
        "chickpeas": (7.6, 8.9, 2.9, 49, 291, 4.8),
        "soybeans": (6.0, 18.2, 5.1, 102, 515, 3.0),
        "beans": (8.7, 8.9, 2.1, 27, 355, 0.3),
        "tofu": (2.3, 17.3, 2.7, 683, 237, 0.6),
    },
    "grains": {
        "oats": (10.6, 16.9, 4.7, 54, 429, 1.0),
        "rice": (0.4, 2.7, 0.2, 10, 35, 0.1),
        "quinoa": (2.8, 4.4, 1.5, 17, 172, 0.9),
        "pasta": (1.8, 5.8, 1.3, 7, 44, 0.6),
        "bread": (6.0, 12.3, 2.5, 161, 254, 4.3),
    },
    "meats": {
        "beef": (0, 25.9, 2.6, 18, 318, 0),
        "chicken": (0, 31.0, 1.0, 15, 256, 0),
        "pork": (0, 27.0, 0.9, 20, 362, 0),
        "turkey": (0, 28.6, 1.1, 14, 239, 0),
    },
    "dairy": {
        "milk": (0, 3.2, 0, 113, 132, 5.1),
        "yogurt": (0, 3.5, 0.1, 121, 155, 4.7),
        "cheese": (0, 22.9, 0.1, 710, 76, 0.5),
    },
}
FIGURES = {food: figures for foods in GROUPS.values() for food, figures in foods.items()}
FOODS = tuple(FIGURES)


def figure(food: str, nutrient: str) -> float:
    """The amount of a nutrient in 100 g, in `UNITS`."""
    return FIGURES[food][NUTRIENTS.index(nutrient)]


def level(food: str, nutrient: str) -> str:
    """Whether a food is `high` or `low` in a nutrient."""
    return "high" if figure(food, nutrient) >= HIGH[nutrient] else "low"


def high_in(nutrient: str, group: str) -> tuple[str, ...]:
    """The foods of a group that are high in a nutrient."""
    return tuple(food for food in GROUPS[group] if level(food, nutrient) == "high")


def singular(food: str) -> str:
    """apples → apple, raspberries → raspberry, tomatoes → tomato; mass nouns do not change."""
    for plural, ending in (("ies", "y"), ("oes", "o"), ("s", "")):
        if food.endswith(plural):
            return food.removesuffix(plural) + ending
    return food


def agreeing(**foods: str) -> dict[str, str]:
    """Words for a template: the foods, and for each food `x` the agreeing verbs `x_is`, `x_has` and `x_does`."""
    forms = {"is": "are", "has": "have", "does": "do"}
    verbs = [(name, food, verb) for name, food in foods.items() for verb in forms]
    return foods | {f"{name}_{verb}": forms[verb] if food.endswith("s") else verb for name, food, verb in verbs}
