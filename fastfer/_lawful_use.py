# SPDX-License-Identifier: Apache-2.0
"""What model cards and pages say about the law."""

LAWFUL_USE = (
    "Inferring emotions of people is restricted by law. In the European Union, Article 5(1)(f) of the AI Act has "
    "prohibited it at the workplace and in education since 2 February 2025 (medical and safety reasons excepted), and "
    "other uses count as high-risk. Facial expressions are weak evidence of what a person feels, and a network learns "
    "the errors and biases of its labels. Check the law that applies to you, and do not decide about people with this."
)
