from data_modules.lmrl.maze import Maze as Maze
from data_modules.lmrl.score import Anchors as Anchors
