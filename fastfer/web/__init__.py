# SPDX-License-Identifier: Apache-2.0
"""``python -m fastfer.web``: a page on this machine that shows the expressions of faces in pictures and of a camera.

Pictures go over a WebSocket to `fastfer.Recognizer` and come back as boxes and probabilities; nothing is stored, and
nothing leaves the machine. Needs aiohttp (``pip install 'fastfer[web]'``), and no torch for an engine file (.ffe).
"""
