"""What can be seen of a response without another model: that it is empty, cut, looping, copied, in another language.

checks.py     the checks by their names in a job file
numbers.py    the numbers of a text as values
languages.py  which language a text is in
loops.py      text that repeats itself
user.py       checks of the user's own, from a Python file
"""
